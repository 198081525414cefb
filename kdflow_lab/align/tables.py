"""Alignments as text, for a terminal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kdflow_lab.align.reasons import printable

if TYPE_CHECKING:
    from kdflow_lab.align.alignment import AlignedSide, Alignment, Unaligned

SHOWN = 60
"""Lines of a table before the rest is counted only."""
WIDTH = 32
BETWEEN = "·"


class AlignmentRow(NamedTuple):
    """A stretch of the text: a span, or what one or both sides have between two spans.

    Attributes:
        teacher: Range of the teacher's tokens.
        student: Range of the student's.
        byte_start: Where it begins in the bytes of the text; also `byte_end`.
        byte_end: See `byte_start`.
        text: That part of the text.
        reason: Empty for a span, else why it is not aligned.
    """

    teacher: range
    student: range
    byte_start: int
    byte_end: int
    text: str
    reason: str


def rows(alignment: Alignment) -> Iterator[AlignmentRow]:
    """Yield spans and what lies between them, in the order of the text."""
    nothing = range(0)
    ends = {
        "teacher": [span[1] for span in alignment.spans],
        "student": [span[3] for span in alignment.spans],
    }
    gaps: dict[int, dict[str, Unaligned]] = {}
    for one in alignment.unaligned:
        gaps.setdefault(bisect_right(ends[one.side], one.start), {})[one.side] = one
    for number in range(len(alignment.spans) + 1):
        if number in gaps:
            both = gaps[number]
            some = next(iter(both.values()))
            teacher, student = (
                range(both[side].start, both[side].end) if side in both else nothing
                for side in ("teacher", "student")
            )
            why = "; ".join(f"{side}: {one.reason}" for side, one in sorted(both.items()))
            yield AlignmentRow(teacher, student, some.byte_start, some.byte_end, some.text, why)
        if number < len(alignment.spans):
            a, b, c, d = alignment.spans[number]
            start, end = alignment.span_bytes[number]
            part = alignment.data[start:end].decode(errors="backslashreplace")
            yield AlignmentRow(range(a, b), range(c, d), start, end, part, "")


def alignment_table(alignment: Alignment, shown: int = SHOWN) -> str:
    """Say how well the tokens of a text fit, and show them side by side."""
    teacher, student = alignment.teacher, alignment.student
    lines = [
        f"{len(alignment.data)} bytes: {len(teacher.ids)} teacher and {len(student.ids)} student "
        f"tokens in {len(alignment.spans)} spans; coverage {alignment.coverage:.1%}, one-to-one "
        f"{alignment.one_to_one:.1%} of the student's tokens"
    ]
    listed = list(rows(alignment))
    cells = [(_tokens(teacher, row.teacher), _tokens(student, row.student), row) for row in listed][
        :shown
    ]
    left, right = (
        max([len(head), *(len(cell[n]) for cell in cells)])
        for n, head in enumerate(("teacher", "student"))
    )
    lines.append(f"  {'teacher':{left}}  {'student':{right}}  text")
    for ours, theirs, row in cells:
        note = f"  <- {row.reason}" if row.reason else ""
        mark = "!" if row.reason else " "
        text = _short(printable(alignment.data[row.byte_start : row.byte_end]))
        lines.append(f"{mark} {ours:{left}}  {theirs:{right}}  {text}{note}")
    if len(listed) > shown:
        lines.append(f"  … and {len(listed) - shown} more")
    return "\n".join(lines)


def _tokens(side: AlignedSide, tokens: range) -> str:
    return _short(BETWEEN.join(side.tokens[token] for token in tokens))


def _short(text: str) -> str:
    text = text.replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
