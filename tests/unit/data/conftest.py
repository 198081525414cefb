"""The zoo's tokenizer, trained in a second: on tasks alone, without the docstrings."""

from __future__ import annotations

import copy

import pytest

from kdflow_lab.zoo import prose
from kdflow_lab.zoo import tokenizer as zoo_tokenizer


@pytest.fixture(scope="session")
def zoo():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "texts", lambda split: [("one", "A line of prose, and another one.")])
        return zoo_tokenizer.train_tokenizer(task_rows=300)


@pytest.fixture
def tokenizer(zoo):
    """A copy, so that a test may change its template."""
    return copy.deepcopy(zoo)
