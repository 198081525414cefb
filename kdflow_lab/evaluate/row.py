"""What an evaluation reads in a row of data beside its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdflow_lab.data.prompts import references
from kdflow_lab.data.rows import BAD, SOURCE, Conversation, form_of, parse


def data_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as its user knows it: without this package's inner columns."""
    return {name: value for name, value in row.items() if name not in (SOURCE, BAD)}


def response_bytes(row: Mapping[str, Any]) -> int:
    """Count the UTF-8 bytes of the text whose tokens are scored.

    That of all answers, or the whole of a plain text. It depends on no tokenizer, so that bits a
    byte compare models of several; chat templates may strip white space around an answer, and what
    ends an answer has no bytes.

    Args:
        row: One that was tokenized, so it can be read.
    """
    parsed = parse(row, form_of(list(row), need_response=False))
    if not isinstance(parsed, Conversation):
        return len(parsed.encode())
    return sum(len(parsed.messages[turn]["content"].encode()) for turn in parsed.turns())


def is_right(row: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is one of the row's right ones, but for white space around it."""
    return answer.strip() in [text.strip() for text in references(row)]
