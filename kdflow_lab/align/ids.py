"""Alignment of whole batches on token ids: where every token of many responses lies.

Token ids give bytes, and equal bytes on both sides give places by adding up widths: no text is
decoded, no offset is asked for, and nothing runs per token in Python. Only rows whose bytes differ,
by a normaliser, an unknown token, a dropped blank, are walked one by one (`walk.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdflow_lab.align.batch import AlignedIds
from kdflow_lab.align.placing import place_row, reference_of, with_blank
from kdflow_lab.align.units import SPACE, Ints, Units, flatten, pieces_of, unit_tables, write
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.align.walk import BLANK, PLACED, SILENT, Walk
from kdflow_lab.errors import ShapeError


@dataclass(slots=True)
class _Side:
    """One side of a batch: what its tokens write, and where."""

    vocabulary: Vocabulary
    table: Units
    ids: Ints
    lengths: Ints
    begin: Ints
    width: Ints
    first: Ints

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, table: Units, rows: Sequence[ArrayLike], name: str
    ) -> _Side:
        ids, lengths = flatten(rows, name)
        known = table.known(ids)
        return cls(
            vocabulary,
            table,
            ids,
            lengths,
            table.offset[known],
            table.width[known],
            np.cumsum(lengths) - lengths,
        )

    def row_widths(self) -> Ints:
        """Int64[R], units of each row."""
        total = np.concatenate([[0], np.cumsum(self.width)])
        return total[self.first + self.lengths] - total[self.first]

    def local_start(self) -> Ints:
        """Int64[tokens], units of the same row before each token."""
        before = np.cumsum(self.width) - self.width
        total = np.append(before, self.width.sum())
        return before - np.repeat(total[self.first], self.lengths)

    def slice(self, row: int) -> slice:
        return slice(int(self.first[row]), int(self.first[row] + self.lengths[row]))

    def drop_blank(self, rows: Ints) -> None:
        """Leave out the blank that opens the first written token of each of these rows."""
        writes = np.flatnonzero(self.width > 0)
        at = writes[np.searchsorted(writes, self.first[rows])]
        self.begin[at] += 1
        self.width[at] -= 1

    def opens_with_blank(self, rows: Ints) -> NDArray[np.bool_]:
        """Bool[rows], whether the first unit of each row is a blank. The rows write something."""
        writes = np.flatnonzero(self.width > 0)
        at = writes[np.searchsorted(writes, self.first[rows])]
        return self.table.units[self.begin[at]] == SPACE

    def pieces(self, row: int) -> list[str]:
        """What each token of a row writes, a character for each unit."""
        known = self.table.known(self.ids[self.slice(row)])
        return pieces_of(self.table, known)

    def became(self) -> NDArray[np.uint8]:
        """UInt8[tokens], what became of each token if its row needs no walk."""
        writes = self.table.width[self.table.known(self.ids)] > 0
        silent = np.where(writes, BLANK, SILENT)
        return np.where(self.width > 0, PLACED, silent).astype(np.uint8)


def align_ids(
    pair: TokenizerPair,
    teacher_ids: Sequence[ArrayLike],
    student_ids: Sequence[ArrayLike],
    *,
    texts: Sequence[str] | None = None,
) -> AlignedIds:
    """Align many responses at once, given as the token ids of both sides.

    Linear in the tokens. The ids need not be what the tokenizers would make of the text: sampled
    ones, and a character that was cut in the middle, are placed by their bytes.

    Args:
        pair: Both tokenizers, from `TokenizerPair.of`.
        teacher_ids: R lists of ids.
        student_ids: R lists of ids, the same responses.
        texts: The R texts, if they are known. They matter only where both sides changed the text;
            what one of them wrote is taken for the text elsewhere.

    Raises:
        ShapeError: The numbers of rows differ.
        DataError: An id is negative, or a row is no list of ids.
    """
    counts = {len(teacher_ids), len(student_ids), len(teacher_ids if texts is None else texts)}
    if len(counts) > 1:
        raise ShapeError(
            f"{len(teacher_ids)} responses in the teacher's ids, {len(student_ids)} in the "
            f"student's{'' if texts is None else f', {len(texts)} texts'}. Expected the same "
            "number. Give the ids of the same responses, in the same order."
        )
    tables = unit_tables(pair)
    teacher = _Side.of(pair.teacher, tables[0], teacher_ids, "teacher")
    student = _Side.of(pair.student, tables[1], student_ids, "student")
    same = _mark_same(pair, teacher, student)
    _drop_blanks(teacher, student)
    equal = _equal_rows(teacher, student, ~same) | same
    became = [side.became() for side in (teacher, student)]
    lengths = teacher.row_widths()
    starts = [side.local_start() for side in (teacher, student)]
    ends = [start + side.width for start, side in zip(starts, (teacher, student), strict=True)]
    for row in np.flatnonzero(~equal).tolist():
        text = None if texts is None else texts[row]
        reference, walks = _walk_row(row, (teacher, student), text)
        lengths[row] = len(reference)
        for number, (side, found) in enumerate(zip((teacher, student), walks, strict=True)):
            part = side.slice(row)
            starts[number][part] = found.start
            ends[number][part] = found.end
            became[number][part] = found.became
    row_start = np.concatenate([[0], np.cumsum(lengths)])
    for number, side in enumerate((teacher, student)):
        base = np.repeat(row_start[:-1], side.lengths)
        starts[number] += base
        ends[number] += base
    return AlignedIds(
        pair, teacher.ids, student.ids, starts[0], ends[0], starts[1], ends[1], teacher.lengths,
        student.lengths, row_start, became[0], became[1], equal,
    )  # fmt: skip


def _mark_same(pair: TokenizerPair, teacher: _Side, student: _Side) -> NDArray[np.bool_]:
    """Find rows of one tokenizer with equal ids: paired one to one, whatever they write."""
    same = np.zeros(len(teacher.lengths), bool)
    if not pair.same:
        return same
    alike = np.flatnonzero(teacher.lengths == student.lengths)
    for row in alike.tolist():
        a, b = teacher.slice(row), student.slice(row)
        if np.array_equal(teacher.ids[a], student.ids[b]):
            same[row] = True
            teacher.width[a] = np.maximum(teacher.width[a], 1)
            student.width[b] = teacher.width[a]
    return same


def _drop_blanks(teacher: _Side, student: _Side) -> None:
    """Leave out a blank in front that one side wrote and the other did not, row by row."""
    widths = teacher.row_widths(), student.row_widths()
    for side, more, fewer in ((teacher, *widths), (student, *widths[::-1])):
        if side.vocabulary.blank == "text":
            continue
        rows = np.flatnonzero(more == fewer + 1)
        side.drop_blank(rows[side.opens_with_blank(rows)])


def _equal_rows(teacher: _Side, student: _Side, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bool[R], whether both sides of a row wrote the same; only of the chosen rows."""
    widths = teacher.row_widths()
    equal = chosen & (widths == student.row_widths())
    streams: list[NDArray[np.uint16]] = []
    for side in (teacher, student):
        if equal.all():
            streams.append(write(side.table, side.begin, side.width))
        else:
            tokens = np.repeat(equal, side.lengths)
            streams.append(write(side.table, side.begin[tokens], side.width[tokens]))
    differ = np.flatnonzero(streams[0] != streams[1])
    if len(differ):
        rows = np.flatnonzero(equal)
        equal[rows[np.searchsorted(np.cumsum(widths[rows]), differ, side="right")]] = False
    return equal


def _walk_row(row: int, sides: tuple[_Side, _Side], text: str | None) -> tuple[str, list[Walk]]:
    """Place the tokens of a row whose sides wrote different things."""
    pieces = [side.pieces(row) for side in sides]
    vocabularies = [side.vocabulary for side in sides]
    reference = reference_of(vocabularies, ["".join(one) for one in pieces], text)
    reference, _ = with_blank(reference, vocabularies, pieces)
    return reference, [
        place_row(reference, vocabulary, one)
        for vocabulary, one in zip(vocabularies, pieces, strict=True)
    ]
