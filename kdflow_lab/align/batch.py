"""A batch of responses, aligned: where every token of both sides lies, and what follows from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.align.pairing import Pairing, one_to_one, spans
from kdflow_lab.align.reasons import reason
from kdflow_lab.align.units import Ints
from kdflow_lab.align.vocabulary import TokenizerPair


class UnalignedToken(NamedTuple):
    """A token that is in no span.

    Attributes:
        side: `teacher` or `student`.
        row: Number of the response in the batch.
        token: Index of the token in the response.
        token_id: Its id.
        reason: Why, in words.
    """

    side: str
    row: int
    token: int
    token_id: int
    reason: str


@dataclass(frozen=True)
class AlignedIds:
    """Where the tokens of a batch of responses lie in what both sides wrote.

    R responses of U teacher and T student tokens in all, joined one after the other. Places are as
    in `pairing.py`; each row of data begins at the same place on both sides.

    Attributes:
        pair: The tokenizers.
        teacher_ids: Int64[U].
        student_ids: Int64[T].
        teacher_start: Int64[U]; also `teacher_end`.
        student_start: Int64[T]; also `student_end`.
        teacher_lengths: Int64[R], tokens of each row.
        student_lengths: Int64[R].
        row_start: Int64[R + 1], the place at which each row begins; the last is the end.
        teacher_became: UInt8[U], what became of each token: the codes of `walk.py`.
        student_became: UInt8[T].
        equal: Bool[R], whether both sides wrote the same, but for a blank in front.
    """

    pair: TokenizerPair
    teacher_ids: Ints
    student_ids: Ints
    teacher_start: Ints
    teacher_end: Ints
    student_start: Ints
    student_end: Ints
    teacher_lengths: Ints
    student_lengths: Ints
    row_start: Ints
    teacher_became: NDArray[np.uint8]
    student_became: NDArray[np.uint8]
    equal: NDArray[np.bool_]

    @cached_property
    def spans(self) -> Ints:
        """Int64[n, 4]: (teacher_start, teacher_end, student_start, student_end), token indices."""
        return spans(self.teacher_start, self.teacher_end, self.student_start, self.student_end)

    @property
    def pairs(self) -> Ints:
        """Int64[m, 2]: (teacher_index, student_index) of the spans with one token each."""
        return one_to_one(self.spans)

    @property
    def coverage(self) -> float:
        """Places in spans over all places: bytes, and one for each special token with a role.

        1.0 where there is nothing to cover.
        """
        total = int(self.row_start[-1])
        found = self.spans
        if not total:
            return 1.0
        inside = self.student_end[found[:, 3] - 1] - self.student_start[found[:, 2]]
        return float(inside.sum()) / total

    @property
    def one_to_one(self) -> float:
        """The share of the student's tokens that are one token of the teacher too."""
        return len(self.pairs) / len(self.student_ids) if len(self.student_ids) else 1.0

    @property
    def teacher_sample(self) -> Ints:
        """Int64[U], number of the row that a teacher's token is of."""
        return np.repeat(np.arange(len(self.teacher_lengths)), self.teacher_lengths)

    @property
    def student_sample(self) -> Ints:
        """Int64[T], number of the row that a student's token is of."""
        return np.repeat(np.arange(len(self.student_lengths)), self.student_lengths)

    def pairing(self) -> Pairing:
        """Return what the losses take."""
        return Pairing(
            student_start=self.student_start,
            student_end=self.student_end,
            teacher_start=self.teacher_start,
            teacher_end=self.teacher_end,
            student_sample=self.student_sample,
            teacher_sample=self.teacher_sample,
            teacher_labels=self.teacher_ids,
        )

    def span_sizes(self) -> Counter[tuple[int, int]]:
        """Count the spans by their number of (teacher, student) tokens."""
        found = self.spans
        sizes = np.stack([found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]], axis=1)
        kinds, counts = np.unique(sizes, axis=0, return_counts=True)
        return Counter({(int(a), int(b)): int(n) for (a, b), n in zip(kinds, counts, strict=True)})

    def unaligned(self) -> list[UnalignedToken]:
        """List the tokens in no span, the teacher's first, with the reason for each."""
        listed: list[UnalignedToken] = []
        found = self.spans
        for side, column, ids, lengths, became, vocabulary in (
            ("teacher", 0, self.teacher_ids, self.teacher_lengths, self.teacher_became,
             self.pair.teacher),
            ("student", 2, self.student_ids, self.student_lengths, self.student_became,
             self.pair.student),
        ):  # fmt: skip
            change = np.zeros(len(ids) + 1, np.int64)
            np.add.at(change, found[:, column], 1)
            np.add.at(change, found[:, column + 1], -1)
            first = np.cumsum(lengths) - lengths
            for index in np.flatnonzero(np.cumsum(change)[:-1] == 0).tolist():
                row = int(np.searchsorted(first, index, side="right")) - 1
                token = int(ids[index])
                why = reason(int(became[index]), token, vocabulary, side)
                listed.append(UnalignedToken(side, row, index - int(first[row]), token, why))
        return listed
