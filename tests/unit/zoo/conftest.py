"""One small tokenizer for all tests of the zoo: training it takes seconds."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from kdflow_lab.zoo.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(task_rows=500)
