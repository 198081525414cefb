"""Text of the standard library: a fixed order, splits apart, and nothing of the tasks in it."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from unit.zoo.solver import WORDINGS

from kdflow_lab import zoo
from kdflow_lab.errors import ConfigError
from kdflow_lab.zoo import prose
from kdflow_lab.zoo.tasks import KINDS, stream


def test_reading_again_gives_the_same_texts_in_the_same_order():
    first = prose.docstrings()
    prose.docstrings.cache_clear()
    assert prose.docstrings() == first
    assert len(first) > 3000


def test_texts_are_not_repeated_and_not_empty():
    texts = [text for _, text in prose.docstrings()]
    assert len(set(texts)) == len(texts)
    assert min(len(text) for text in texts) >= 40


def test_every_text_is_in_exactly_one_split():
    splits = {split: set(prose.texts(split)) for split in prose.SPLITS}
    assert sum(len(texts) for texts in splits.values()) == len(prose.docstrings())
    assert set.union(*splits.values()) == set(prose.docstrings())
    shares = {split: len(texts) / len(prose.docstrings()) for split, texts in splits.items()}
    assert shares == pytest.approx({"train": 0.9, "validation": 0.05, "test": 0.05}, abs=0.02)


def test_the_data_set_is_a_prefix_of_the_split():
    data = zoo.dataset("zoo/prose", "test", rows=10)
    assert data.column_names == ["text"]
    assert data["text"] == [text for _, text in prose.texts("test")][:10]
    assert len(zoo.dataset("zoo/prose", "validation")) == len(prose.texts("validation"))


def test_questions_have_one_sentence_as_their_answer():
    pairs = prose.questions("train")
    assert len(pairs) > 1000
    for question, answer in pairs:
        assert re.fullmatch(r"What does \w+ do\?", question)
        assert 15 <= len(answer) <= 120
        assert "\n" not in answer


def test_chat_rows_are_deterministic_and_of_their_split():
    assert list(islice(prose.chat("train", seed=1), 50)) == list(
        islice(prose.chat("train", seed=1), 50)
    )
    train, test = (
        {row["answers"][0] for row in islice(prose.chat(split), 3000) if row["kind"] == "docstring"}
        for split in ("train", "test")
    )
    # sentences that two docstrings of different splits share, such as "Return self."
    assert len(train & test) < 0.05 * len(test)


def test_echo_answers_repeat_what_is_shown():
    rows = [row for row in islice(prose.chat("train"), 1000) if row["kind"] == "echo"]
    assert 400 < len(rows) < 600
    for row in rows:
        question, answer = (message["content"] for message in row["messages"])
        assert re.fullmatch(r"Repeat: .+|Say this again: .+", question)
        assert answer == "Again: " + question.split(": ", 1)[1]


def test_nothing_that_the_student_reads_asks_a_task():
    """Neither a whole question anywhere in it, nor the start of one as its own start."""
    whole = [re.compile(pattern) for _, pattern, _ in WORDINGS]
    starts = tuple(filter(None, (re.split(r"[\\(\[]", pattern)[0] for _, pattern, _ in WORDINGS)))
    assert all(any(_asks(kind, start) for kind in KINDS) for start in starts)
    for row in islice(prose.chat("train"), 5000):
        question, answer = (message["content"] for message in row["messages"])
        assert not question.startswith(starts)
        for text in (question, answer):
            assert not any(pattern.search(text) for pattern in whole), text


def _asks(kind: str, start: str) -> bool:
    rows = islice(stream(kinds=[kind]), 40)
    return any(row["messages"][0]["content"].startswith(start) for row in rows)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        prose.texts("trian")
    with pytest.raises(ConfigError, match="Known: test, train, validation"):
        zoo.dataset("zoo/prose", "dev")
