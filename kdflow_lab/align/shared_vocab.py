"""Do two models speak in the same token ids, and how many of them?

Equal width is not equal tokenizer, and equal tokenizers come with unequal widths (Qwen pads its
heads to 151,936 or 152,064 rows). So the ids themselves are compared, and both heads are cut to the
ids that mean the same on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdflow_lab.errors import ModelError

PROBES = (
    "The answer is 42.",
    "naïve café: 3 × 7 = 21",
    "  two  spaces\n\tdef f(x):\n        return x",
    "cafe\u0301 ﬁne, CAPITALS and 東京",
)
"""Texts that tokenizers with other merges or other pre-tokenization split differently."""


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """The ids that both models know.

    Attributes:
        size: Ids 0 … size - 1 are the same tokens on both sides.
        note: What was cut, in words; empty if nothing was.
    """

    size: int
    note: str


def shared_vocabulary(
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    *,
    teacher_rows: int,
    student_rows: int,
    differs: str | None = None,
) -> SharedVocabulary:
    """Compare two tokenizers id by id.

    Args:
        teacher_tokenizer: A `transformers` tokenizer.
        student_tokenizer: Likewise.
        teacher_rows: Rows of the teacher's head, padding included.
        student_rows: Rows of the student's head.
        differs: What `difference` said of the two, if it was asked already.

    Raises:
        ModelError: The tokenizers differ; the message shows the first difference.
    """
    if differs is None:
        differs = difference(teacher_tokenizer, student_tokenizer)
    if differs:
        raise ModelError(
            f"Teacher and student have different tokenizers: {differs}. Their token ids do not "
            "mean the same, so the teacher cannot mark the student's tokens one by one. Take an "
            "algorithm that crosses tokenizers (algorithm='auto' or 'byte_prefix'), or a student "
            "with the teacher's tokenizer."
        )
    size = 1 + min(max(_by_id(teacher_tokenizer)), max(_by_id(student_tokenizer)))
    size = min(size, teacher_rows, student_rows)
    note = ""
    if size < max(teacher_rows, student_rows):
        note = (
            f"Heads of {teacher_rows:,} (teacher) and {student_rows:,} (student) rows are cut to "
            f"the {size:,} ids that both tokenizers define."
        )
    return SharedVocabulary(size, note)


def difference(teacher_tokenizer: Any, student_tokenizer: Any) -> str:
    """Say where two tokenizers differ first, in words; empty if they are the same.

    Equal up to the smaller vocabulary is the same: the ids above it are cut.
    """
    teacher_ids = _by_id(teacher_tokenizer)
    student_ids = _by_id(student_tokenizer)
    for token_id in range(1 + min(max(teacher_ids), max(student_ids))):
        ours, theirs = student_ids.get(token_id), teacher_ids.get(token_id)
        if ours != theirs:
            return f"id {token_id} is {theirs!r} for the teacher and {ours!r} for the student"
    for text in PROBES:
        teacher_split = teacher_tokenizer.encode(text, add_special_tokens=False)
        student_split = student_tokenizer.encode(text, add_special_tokens=False)
        if teacher_split != student_split:
            return (
                f"they split {text!r} differently: "
                f"{teacher_tokenizer.convert_ids_to_tokens(teacher_split)} and "
                f"{student_tokenizer.convert_ids_to_tokens(student_split)}"
            )
    return ""


def _by_id(tokenizer: Any) -> dict[int, str]:
    """Map id to token, added tokens included."""
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}
