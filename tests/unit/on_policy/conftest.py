"""Models, tokenizers and prompts of the zoo, and samples as a rollout gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdflow_lab import zoo
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.load import load_tokenizer
from kdflow_lab.on_policy.prompts import Prompts, read_prompts
from kdflow_lab.rollout.sampling import Sample

ROWS = 12


@pytest.fixture(scope="session")
def data() -> Any:
    """Rows of tasks."""
    return zoo.dataset("zoo/tasks", rows=ROWS)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Of the teacher and of `zoo/student`."""
    return load_tokenizer(str(zoo.path("zoo/teacher")))


@pytest.fixture(scope="session")
def unigram() -> Any:
    """The other student's."""
    return load_tokenizer(str(zoo.path("zoo/student-unigram")))


@pytest.fixture(scope="session")
def pair(tokenizer: Any, unigram: Any) -> TokenizerPair:
    """Both vocabularies."""
    return TokenizerPair.of(tokenizer, unigram)


@pytest.fixture(scope="session")
def prompts(data: Any, tokenizer: Any) -> Prompts:
    """With one tokenizer."""
    return read_prompts(
        data, tokenizer, None, teacher_input=None, max_length=256, max_new_tokens=32
    )[0]


@pytest.fixture(scope="session")
def prompts_of_two(data: Any, tokenizer: Any, unigram: Any) -> Prompts:
    """With the unigram student."""
    return read_prompts(
        data, unigram, tokenizer, teacher_input=None, max_length=256, max_new_tokens=32
    )[0]


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """Makes a sample of these ids."""

    def make(ids: Any, *, prompt: int = 0, finished: bool = True, version: int = 0) -> Sample:
        ids = np.asarray(ids, np.int32)
        logprobs = -np.arange(1, len(ids) + 1, dtype=np.float32) - 10 * prompt
        return Sample(prompt, 0, ids, logprobs, finished, version)

    return make
