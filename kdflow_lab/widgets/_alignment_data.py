"""What the alignment lens shows, before it is drawn: tokens as people can read them, in pieces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdflow_lab.align.roles import render
from kdflow_lab.align.tables import rows
from kdflow_lab.widgets._tokens import SHOWN, visible

if TYPE_CHECKING:
    from kdflow_lab.align.alignment import AlignedSide, Alignment
    from kdflow_lab.align.tables import AlignmentRow

ONE, SPLIT, MANY, UNALIGNED = "one", "split", "many", "unaligned"
KINDS = {
    ONE: "one to one",
    SPLIT: "one to many",
    MANY: "many to many",
    UNALIGNED: "unaligned",
}
"""Kinds of pieces, and what they are called."""
LONG_RUN = 5
"""Equal blanks in a row from which on they are counted instead of shown."""
_RUNS = re.compile(rf"([{''.join(SHOWN)}])\1{{{LONG_RUN - 1},}}")
LONG_TOKEN = 40
"""Characters of a token's text that are shown; the details show more."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one side.

    Attributes:
        index: Its place on its side.
        id: In its vocabulary.
        name: Its tokenizer's spelling, readable.
        shown: What it writes here, readable; its name where it writes nothing.
        hex: The bytes that it writes here.
        note: What `shown` cannot say, such as which part of a character it is.
        silent: Whether it writes nothing.
    """

    index: int
    id: int
    name: str
    shown: str
    hex: str
    note: str
    silent: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A span, or what lies between two of them.

    Attributes:
        kind: A name of `KINDS`.
        teacher: Its tokens; also `student`.
        student: See `teacher`.
        byte_start: In the text; also `byte_end`.
        byte_end: See `byte_start`.
        shown: That part of the text, readable.
        reason: Why it is not aligned; empty for spans.
        breaks: Line ends in it.
    """

    kind: str
    teacher: tuple[Token, ...]
    student: tuple[Token, ...]
    byte_start: int
    byte_end: int
    shown: str
    reason: str
    breaks: int

    @property
    def ratio(self) -> str:
        """How many tokens of the teacher meet how many of the student, such as `1:3`."""
        return f"{len(self.teacher)}:{len(self.student)}"

    @property
    def width(self) -> int:
        """Characters that it takes on its wider side, with a little room around each token."""
        return max(
            sum(len(token.shown) + 1 for token in side) for side in (self.teacher, self.student)
        )


@dataclass(frozen=True, slots=True)
class Role:
    """What special tokens are for.

    Attributes:
        name: `turn_end`, `eos` …, or a spelling.
        teacher: The teacher's token and its id, readable; empty if it has none.
        student: Likewise.
    """

    name: str
    teacher: str
    student: str


def pieces(alignment: Alignment) -> Iterator[Piece]:
    """Yield the spans of an alignment and what lies between them, in the order of the text."""
    for row in rows(alignment):
        part = alignment.data[row.byte_start : row.byte_end]
        teacher, student = (
            tuple(_token(alignment, side, index) for index in tokens)
            for side, tokens in (
                (alignment.teacher, row.teacher),
                (alignment.student, row.student),
            )
        )
        yield Piece(
            _kind(row),
            teacher,
            student,
            row.byte_start,
            row.byte_end,
            _readable(part)[0] if part else "",
            row.reason,
            part.count(b"\n"),
        )


def _kind(row: AlignmentRow) -> str:
    if row.reason:
        return UNALIGNED
    single = (len(row.teacher) == 1) + (len(row.student) == 1)
    return (MANY, SPLIT, ONE)[single]


def _token(alignment: Alignment, side: AlignedSide, index: int) -> Token:
    start, end = side.byte_spans[index]
    part = alignment.data[start:end]
    name = visible(side.tokens[index], LONG_TOKEN)
    if not part:
        return Token(index, side.ids[index], name, name, "", "writes nothing here", True)
    shown, note = _readable(part)
    note = note and _whole(alignment.data, start, end)
    return Token(index, side.ids[index], name, shown, part[:LONG_TOKEN].hex(" "), note, False)


def _readable(part: bytes) -> tuple[str, str]:
    """Bytes as a readable text, and whether they are no whole characters."""
    try:
        text = part.decode()
    except UnicodeDecodeError:
        most = part[: LONG_TOKEN // 4]
        return f"⟨{most.hex(' ')}{' …' if len(part) > len(most) else ''}⟩", "partial"
    return squeezed(text), ""


def squeezed(text: str) -> str:
    """A readable text in which a long run of one kind of blank is counted: `␣×12`."""
    parts: list[str] = []
    done = 0
    text = text[: 50 * LONG_TOKEN]
    for run in _RUNS.finditer(text):
        if run.start() > done:
            parts.append(visible(text[done : run.start()]))
        parts.append(f"{SHOWN[run[1]]}×{len(run[0])}")
        done = run.end()
    if done < len(text) or not text:
        parts.append(visible(text[done:]))
    shown = "".join(parts)
    return shown if len(shown) <= LONG_TOKEN else f"{shown[: LONG_TOKEN - 1]}…"


def _whole(data: bytes, start: int, end: int) -> str:
    """Which bytes of which character a part of one is."""
    first = start
    while first > 0 and data[first] & 0xC0 == 0x80:
        first -= 1
    last = first + 1
    while last < len(data) and data[last] & 0xC0 == 0x80:
        last += 1
    try:
        character = data[first:last].decode()
    except UnicodeDecodeError:
        return "no whole character"
    if end > last:
        return "parts of several characters"
    where = (
        f"byte {start - first + 1}"
        if end - start == 1
        else (f"bytes {start - first + 1} to {end - first}")
    )
    return f"{where} of the {last - first} of {visible(character)}"


def page(alignment: Alignment) -> dict[str, Any]:
    """Columns for the page: `pieces`, and for `teacher` and `student` their tokens in order."""
    found = list(pieces(alignment))
    reasons = list(dict.fromkeys(piece.reason for piece in found))
    number = {reason: at for at, reason in enumerate(reasons)}
    kinds = list(KINDS)
    sides: dict[str, dict[str, Any]] = {}
    for side in ("teacher", "student"):
        tokens = [token for piece in found for token in getattr(piece, side)]
        sides[side] = {
            "ids": [token.id for token in tokens],
            "names": [token.name for token in tokens],
            "shown": [token.shown for token in tokens],
            "hex": [token.hex for token in tokens],
            "notes": {at: token.note for at, token in enumerate(tokens) if token.note},
            "silent": [at for at, token in enumerate(tokens) if token.silent],
        }
    return {
        "numbers": [
            [f"{alignment.coverage:.1%}", f"of {len(alignment.data):,} bytes aligned"],
            [f"{alignment.one_to_one:.1%}", "of the student's tokens one to one"],
            [f"{len(alignment.teacher.ids):,}", "teacher tokens"],
            [f"{len(alignment.student.ids):,}", "student tokens"],
        ],
        "counts": counts(found),
        "reasons": reasons,
        # kind, tokens of teacher and student, where it begins and ends, its reason, line ends
        "pieces": [
            [
                *(kinds.index(piece.kind), len(piece.teacher), len(piece.student)),
                *(piece.byte_start, piece.byte_end, number[piece.reason], piece.breaks),
            ]
            for piece in found
        ],
        "texts": [piece.shown for piece in found],
        **sides,
    }


def lines(found: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Put pieces into lines of at most so many characters, ended by line ends of the text too."""
    line: list[Piece] = []
    used = 0
    for piece in found:
        if line and used + piece.width > most:
            yield line
            line, used = [], 0
        line.append(piece)
        used += piece.width
        if piece.breaks:
            yield line
            line, used = [], 0
    if line:
        yield line


def counts(found: Sequence[Piece]) -> dict[str, int]:
    """How many pieces of each kind there are, in the order of `KINDS`."""
    counted = Counter(piece.kind for piece in found)
    return {kind: counted[kind] for kind in KINDS}


def headline(alignment: Alignment) -> str:
    """How well the tokens fit, in numbers."""
    return (
        f"{alignment.coverage:.1%} of {len(alignment.data):,} bytes aligned · "
        f"{len(alignment.teacher.ids):,} teacher tokens, {len(alignment.student.ids):,} student "
        f"tokens · {alignment.one_to_one:.1%} of the student's tokens one-to-one"
    )


def roles(alignment: Alignment) -> list[Role]:
    """The roles of special tokens on both sides, those of both first."""
    vocabularies = alignment.pair.teacher, alignment.pair.student
    tokenizers = alignment.tokenizers or (None, None)
    names = dict.fromkeys([*vocabularies[0].roles, *vocabularies[1].roles])
    found = [
        Role(
            visible(name, LONG_TOKEN),
            *(
                _special(vocabulary.roles.get(name), name, tokenizer)
                for vocabulary, tokenizer in zip(vocabularies, tokenizers, strict=True)
            ),
        )
        for name in names
    ]
    return sorted(found, key=lambda role: not (role.teacher and role.student))


def _special(token: int | None, role: str, tokenizer: Any) -> str:
    if token is None:
        return ""
    name = role if tokenizer is None else str(tokenizer.convert_ids_to_tokens(token))
    return f"{visible(name, LONG_TOKEN)} ({token})"


def conversation(alignment: Alignment) -> Alignment | None:
    """The example conversation through both templates; None where one cannot render it."""
    from kdflow_lab.align.conversation import align_conversation

    tokenizers = alignment.tokenizers
    if tokenizers is None or any(render(one) is None for one in tokenizers):
        return None
    return align_conversation(*tokenizers)
