"""Which rows of teacher and student belong together: the arithmetic of places in a common text.

A *place* counts what has been written so far: the bytes of the UTF-8 text, and one for each special
token that has a role on both sides, such as the end of the answer. A token lies at [start, end).
One that cannot be placed (a special token without counterpart, bytes that the other side never
wrote) is empty: start = end. Places never fall, neither within a row of data nor from one to the
next, and the rows of data begin at the same place on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Pairing:
    """Where the response tokens of a micro-batch lie, on both sides.

    T response tokens of the student, U of the teacher: the labels that their hidden rows predict.

    Attributes:
        student_start: Int64[T]; also `student_end`.
        teacher_start: Int64[U]; also `teacher_end`.
        student_sample: Int64[T], number of the row of data in the micro-batch that a token is of.
        teacher_sample: Int64[U].
        teacher_labels: Int64[U], the tokens in the teacher's ids.
    """

    student_start: Places
    student_end: Places
    teacher_start: Places
    teacher_end: Places
    student_sample: NDArray[np.int64]
    teacher_sample: NDArray[np.int64]
    teacher_labels: NDArray[np.int64]

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """Int64[n, 4], see `spans`."""
        return spans(self.teacher_start, self.teacher_end, self.student_start, self.student_end)


class Covering(NamedTuple):
    """For each student token: the teacher's token in which it begins.

    Attributes:
        teacher: Int64[T], its index in 0 … U - 1; -1 where there is none.
        depth: Int64[T], bytes of that token that were written before the student's token begins.
        exact: Bool[T], whether the student's token ends within it.
    """

    teacher: NDArray[np.int64]
    depth: NDArray[np.int64]
    exact: NDArray[np.bool_]


def spans(
    teacher_start: Places, teacher_end: Places, student_start: Places, student_end: Places
) -> NDArray[np.int64]:
    """Find the smallest spans that begin and end between two tokens on both sides.

    Linear in the tokens and in the length of the text.

    Returns:
        Int64[n, 4]: (teacher_start, teacher_end, student_start, student_end), ranges of token
        indices, in order. Every placed token whose bytes the other side covers is in exactly one.
    """
    teacher = np.flatnonzero(teacher_end > teacher_start)
    student = np.flatnonzero(student_end > student_start)
    if not len(teacher) or not len(student):
        return np.empty((0, 4), np.int64)
    first = min(int(teacher_start[teacher[0]]), int(student_start[student[0]]))
    last = max(int(teacher_end[teacher[-1]]), int(student_end[student[-1]]))
    cuts = first + np.flatnonzero(
        _boundaries(teacher_start[teacher], teacher_end[teacher], first, last)
        & _boundaries(student_start[student], student_end[student], first, last)
    )
    widths = np.diff(cuts)
    whole = np.ones(len(widths), bool)
    columns: list[NDArray[np.int64]] = []
    for tokens, start, end in (
        (teacher, teacher_start, teacher_end),
        (student, student_start, student_end),
    ):
        begins = np.searchsorted(start[tokens], cuts)
        written = np.concatenate([[0], np.cumsum(end[tokens] - start[tokens])])
        whole &= np.diff(written[begins]) == widths
        columns += [begins[:-1], begins[1:]]
    found = [column[whole] for column in columns]
    return np.stack(
        [
            teacher[found[0]],
            teacher[found[1] - 1] + 1,
            student[found[2]],
            student[found[3] - 1] + 1,
        ],
        axis=1,
    )


def one_to_one(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (teacher_index, student_index) of spans with one token on either side."""
    single = (found[:, 1] - found[:, 0] == 1) & (found[:, 3] - found[:, 2] == 1)
    return found[single][:, [0, 2]]


def span_counts(pairing: Pairing) -> dict[str, int]:
    """Count what is aligned in a micro-batch.

    Returns:
        `places` that either side has written, as many of them as are `covered` by spans, and the
        student's tokens by the span that they are in: `one_to_one`, `one_to_many` (of the teacher's
        tokens to the student's), `many_to_one`, `many_to_many`.
    """
    found = pairing.spans
    teacher, student = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
    inside = pairing.student_end[found[:, 3] - 1] - pairing.student_start[found[:, 2]]
    written = [
        _last_of_rows(pairing.student_sample, pairing.student_start, pairing.student_end),
        _last_of_rows(pairing.teacher_sample, pairing.teacher_start, pairing.teacher_end),
    ]
    rows = max(map(len, written), default=0)
    longest = np.zeros(rows, np.int64)
    for one in written:
        longest[: len(one)] = np.maximum(longest[: len(one)], one)
    kinds = {
        "one_to_one": (teacher == 1) & (student == 1),
        "one_to_many": (teacher == 1) & (student > 1),
        "many_to_one": (teacher > 1) & (student == 1),
        "many_to_many": (teacher > 1) & (student > 1),
    }
    counted = {name: int(student[kind].sum()) for name, kind in kinds.items()}
    return {"places": int(longest.sum()), "covered": int(inside.sum()), **counted}


def _last_of_rows(sample: Places, start: Places, end: Places) -> Places:
    """Places that each row has, on one side; rows begin at the same place on both."""
    if not len(sample):
        return np.zeros(0, np.int64)
    rows = int(sample.max()) + 1
    first = np.full(rows, np.iinfo(np.int64).max)
    last = np.zeros(rows, np.int64)
    np.minimum.at(first, sample, start)
    np.maximum.at(last, sample, end)
    return np.maximum(last - np.minimum(first, last), 0)


def covering(pairing: Pairing) -> Covering:
    """Find the teacher's token in which each student token begins.

    Both models predict from the same text there: the teacher's row gives the distribution of what
    comes after the `depth` bytes of its token that are written already.
    """
    start, end = pairing.student_start, pairing.student_end
    teacher = np.flatnonzero(pairing.teacher_end > pairing.teacher_start)
    at = np.searchsorted(pairing.teacher_start[teacher], start, side="right") - 1
    if not len(teacher):
        nothing = np.full(len(start), -1, np.int64)
        return Covering(nothing, np.zeros_like(nothing), np.zeros(len(start), bool))
    found = teacher[np.maximum(at, 0)]
    inside = (at >= 0) & (end > start) & (start < pairing.teacher_end[found])
    inside &= pairing.teacher_sample[found] == pairing.student_sample
    depth = np.where(inside, start - pairing.teacher_start[found], 0)
    return Covering(
        np.where(inside, found, -1), depth, inside & (end <= pairing.teacher_end[found])
    )


def _boundaries(start: Places, end: Places, first: int, last: int) -> NDArray[np.bool_]:
    """Mark the places in [first, last] where a token begins or ends."""
    marked = np.zeros(last - first + 1, bool)
    marked[start - first] = True
    marked[end - first] = True
    return marked
