"""One text, tokenized by teacher and student: which of their tokens write the same bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdflow_lab.align.reasons import OTHER, printable, reason, why_changed
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.align.walk import CHANGED, PLACED

if TYPE_CHECKING:
    from kdflow_lab.widgets.alignment import AlignmentLens

Span = tuple[int, int, int, int]
SPELLED = 10
"""What became of a special token that stands in the text and is plain text to the other side."""


@dataclass(frozen=True, slots=True)
class AlignedSide:
    """One side's tokens of a text.

    Attributes:
        ids: Token ids.
        tokens: The tokenizer's own spelling of each.
        byte_spans: (start, end) of each token in the bytes of the text; empty for one that writes
            nothing there.
        became: What became of each: a code of `walk.py`.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    byte_spans: tuple[tuple[int, int], ...]
    became: tuple[int, ...]


class Unaligned(NamedTuple):
    """A stretch of one side between two spans.

    Attributes:
        side: `teacher` or `student`.
        start: First token; also `end`, the one after the last. Equal where no token is there.
        end: See `start`.
        byte_start: Where it begins in the bytes of the text; also `byte_end`.
        byte_end: See `byte_start`.
        text: That part of the text; bytes that are no whole character are escaped.
        reason: Why it is not aligned, in words.
    """

    side: str
    start: int
    end: int
    byte_start: int
    byte_end: int
    text: str
    reason: str


class SpecialPair(NamedTuple):
    """Special tokens of both sides that stand for the same.

    Attributes:
        role: `turn_end`, `eos` …, or their common spelling.
        teacher_id: The teacher's.
        student_id: The student's.
    """

    role: str
    teacher_id: int
    student_id: int


@dataclass(frozen=True, repr=False)
class Alignment:
    """How the tokens of teacher and student lie in one text.

    Attributes:
        text: The text; of sampled ids what they write, with U+FFFD for what is no character.
        data: Its bytes.
        teacher: The teacher's tokens.
        student: The student's.
        spans: (teacher_start, teacher_end, student_start, student_end), token ranges that write
            the same bytes; the smallest there are, in order.
        span_bytes: (start, end) of each span in the bytes of the text.
        special: Special tokens that are taken for each other, by role.
        pair: Both vocabularies.
        tokenizers: The teacher's and the student's, where they are known: the lens shows their
            templates.
    """

    text: str
    data: bytes
    teacher: AlignedSide
    student: AlignedSide
    spans: list[Span]
    span_bytes: list[tuple[int, int]]
    special: list[SpecialPair]
    pair: TokenizerPair
    tokenizers: tuple[Any, Any] | None = field(default=None, compare=False)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(teacher_index, student_index) of the spans with one token on either side."""
        return [(a, c) for a, b, c, d in self.spans if b - a == 1 and d - c == 1]

    @property
    def coverage(self) -> float:
        """Bytes of the text in spans over all its bytes, 0 to 1; 1 for an empty text."""
        if not self.data:
            return 1.0
        return sum(end - start for start, end in self.span_bytes) / len(self.data)

    @property
    def one_to_one(self) -> float:
        """The share of the student's tokens that are one token of the teacher too."""
        return len(self.pairs) / len(self.student.ids) if self.student.ids else 1.0

    @cached_property
    def unaligned(self) -> list[Unaligned]:
        """What is in no span, in order, the teacher's first where both begin at one byte.

        On each side, the bytes of spans and of these stretches are the text, each byte once.
        """
        found: list[Unaligned] = []
        for name in ("teacher", "student"):
            column = 0 if name == "teacher" else 2
            token = byte = 0
            ends: list[tuple[int, int, int, int]] = [
                (span[column], span[column + 1], *where)
                for span, where in zip(self.spans, self.span_bytes, strict=True)
            ]
            last = len(getattr(self, name).ids)
            for first, after, start, end in [*ends, (last, last, len(self.data), len(self.data))]:
                if first > token or start > byte:
                    found.append(self._stretch(name, (token, first), (byte, start)))
                token, byte = after, end
        return sorted(found, key=lambda one: (one.byte_start, one.byte_end, one.side != "teacher"))

    def _stretch(self, name: str, tokens: tuple[int, int], where: tuple[int, int]) -> Unaligned:
        side: AlignedSide = getattr(self, name)
        vocabulary: Vocabulary = getattr(self.pair, name)
        part = self.data[slice(*where)]
        reasons: dict[str, None] = {}
        fits: dict[str, None] = {}
        for token in range(*tokens):
            became, one = side.became[token], side.ids[token]
            if became == SPELLED:
                reasons[f"special token {side.tokens[token]!r}, not one to the {OTHER[name]}"] = (
                    None
                )
            elif became == CHANGED and vocabulary.token_bytes[one] is not None:
                every = [side.ids[n] for n in range(*tokens)]
                written = b"".join(vocabulary.token_bytes[n] or b"" for n in every)
                why = why_changed(written, vocabulary)
                reasons[f"the {name} writes {printable(written)} for {printable(part)}: {why}"] = (
                    None
                )
            else:
                (fits if became == PLACED else reasons)[reason(became, one, vocabulary, name)] = (
                    None
                )
        if not tokens[1] > tokens[0]:
            reasons[f"the {name}'s tokenizer leaves these bytes out"] = None
        why = "; ".join(reasons or fits)
        return Unaligned(name, *tokens, *where, part.decode(errors="backslashreplace"), why)

    def __repr__(self) -> str:
        """Say how well the tokens fit, and show them side by side."""
        from kdflow_lab.align.tables import alignment_table

        return alignment_table(self)

    def show(self) -> AlignmentLens:
        """Return the alignment lens: both tokenizations as strips, with bridges between them."""
        from kdflow_lab.widgets.alignment import AlignmentLens

        return AlignmentLens(self)

    def save(self, path: str | Path) -> Path:
        """Write the picture as a file: HTML if its name ends so, else SVG."""
        return self.show().save(path)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        lens = self.show()
        return {"text/html": lens.html(), "image/svg+xml": lens.svg(), "text/plain": repr(self)}

    def _ipython_display_(self) -> None:
        self.show()._ipython_display_()  # pyright: ignore[reportPrivateUsage]
