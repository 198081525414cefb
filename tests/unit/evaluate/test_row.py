"""What an evaluation reads in a row of data beside its tokens."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.data.rows import SOURCE
from kdflow_lab.evaluate.row import data_of, is_right, response_bytes

USER = {"role": "user", "content": "ignored"}


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ({"text": "naïve"}, 6),
        ({"messages": [USER, _said("ab"), USER, _said("東")]}, 2 + 3),
        ({"prompt": "ignored", "completion": "abc"}, 3),
        ({"prompt": [USER, _said("context only")], "response": [_said("abcd")]}, 4),
        ({"messages": [USER, _said("ab")], "text": "not read", "answers": ["abc"]}, 2),
    ],
)
def test_bytes_are_those_of_the_text_that_is_scored(row: dict[str, Any], count: int) -> None:
    assert response_bytes(row) == count


def test_a_metric_sees_the_users_columns() -> None:
    assert data_of({"text": "a", "kind": "b", SOURCE: "x.jsonl:3"}) == {"text": "a", "kind": "b"}


def test_an_answer_is_right_if_it_is_one_of_the_right_ones() -> None:
    row = {"messages": [USER, _said("one")], "answers": ["one", " two "]}
    assert is_right(row, "two\n") and is_right(row, "one") and not is_right(row, "on")
