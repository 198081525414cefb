"""Why a token is in no span, in words."""

from __future__ import annotations

from kdflow_lab.align.vocabulary import Vocabulary
from kdflow_lab.align.walk import BLANK, CHANGED, SILENT

OTHER = {"teacher": "student", "student": "teacher"}


def reason(became: int, token: int, vocabulary: Vocabulary, side: str) -> str:
    """Say why a token is in no span.

    Args:
        became: What became of it: a code of `walk.py`.
        token: Its id.
        vocabulary: Its side's.
        side: `teacher` or `student`.
    """
    if became == SILENT:
        return _silent(token, vocabulary, side)
    if became == BLANK:
        return f"a blank that the {side}'s tokenizer puts before a text"
    if became == CHANGED:
        written = vocabulary.token_bytes[token]
        if written is None:
            return f"special token; the {OTHER[side]} writes no such one here"
        return f"the {side} writes {printable(written)} here: {why_changed(written, vocabulary)}"
    return f"the {OTHER[side]} has no tokens that write just these bytes"


def why_changed(written: bytes, vocabulary: Vocabulary) -> str:
    """Say why bytes may differ from what the other side or the text has."""
    if vocabulary.changes:
        return "its tokenizer changes texts"
    try:
        written.decode()
    except UnicodeDecodeError:
        return "part of a character whose other bytes are missing or differ"
    return "the text has other bytes"


def printable(written: bytes) -> str:
    """Bytes as a quoted text; those that are no whole character are escaped."""
    return repr(written.decode(errors="backslashreplace")).replace("\\\\x", "\\x")


def _silent(token: int, vocabulary: Vocabulary, side: str) -> str:
    if token >= len(vocabulary):
        return f"id {token} is past the {side}'s vocabulary of {len(vocabulary)}"
    if token == vocabulary.roles.get("unk"):
        return f"unknown to the {side}'s tokenizer"
    names = [role for role, one in vocabulary.roles.items() if one == token]
    if names:
        return f"special token ({', '.join(names)}) without a counterpart of the {OTHER[side]}"
    return f"id {token} writes no text"
