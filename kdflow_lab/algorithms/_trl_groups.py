"""Which tokens TRL puts together, answer by answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.losses._trl import Group


class Answer(NamedTuple):
    """One row of data: T tokens of the student, U of the teacher, the last one of both left out.

    Attributes:
        student: Int64[T], which rows of the micro-batch are read.
        teacher: Int64[U].
        student_tokens: Int64[T], which labels they belong to.
        teacher_tokens: Int64[U].
        groups: Tokens that belong together, counted within the answer.
    """

    student: NDArray[np.int64]
    teacher: NDArray[np.int64]
    student_tokens: NDArray[np.int64]
    teacher_tokens: NDArray[np.int64]
    groups: list[Group]


def answers(pairing: Pairing, *, strategy: str, by_position: bool) -> Iterator[Answer]:
    """Yield the answers that have a group.

    Like TRL, the last token of an answer is left out whether it ends the answer or not, `observed`
    reads every row one position late, and what is left when one side runs out is one more group.

    Args:
        pairing: Where the tokens lie.
        strategy: `observed` or `bayesian`.
        by_position: Pair token by token instead.
    """
    for sample in np.unique(pairing.student_sample):
        student = np.flatnonzero(pairing.student_sample == sample)
        teacher = np.flatnonzero(pairing.teacher_sample == sample)
        tokens, others = student[:-1], teacher[:-1]
        if by_position:
            number = range(min(len(tokens), len(others)))
            groups = [(slice(n, n + 1), slice(n, n + 1)) for n in number]
        else:
            groups = _groups(pairing.student_end[tokens], pairing.teacher_end[others])
        if groups:
            late = strategy == "observed"
            yield Answer(
                student[1:] if late else tokens, teacher[1:] if late else others,
                tokens, others, groups,
            )  # fmt: skip


def _groups(student_end: NDArray[np.int64], teacher_end: NDArray[np.int64]) -> list[Group]:
    """Close a group wherever both sides end at the same place."""
    groups: list[Group] = []
    i = j = first_i = first_j = 0
    while i < len(student_end) and j < len(teacher_end):
        ours, theirs = student_end[i], teacher_end[j]
        i, j = i + (ours <= theirs), j + (theirs <= ours)
        if ours == theirs:
            groups.append((slice(first_i, i), slice(first_j, j)))
            first_i, first_j = i, j
    if first_i < len(student_end) and first_j < len(teacher_end):
        groups.append((slice(first_i, len(student_end)), slice(first_j, len(teacher_end))))
    return groups
