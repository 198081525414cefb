"""Micro-batches: rows packed behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.align.pairing import Pairing
from kdflow_lab.data.table import TokenTable, ranges, tokens_run
from kdflow_lab.errors import ShapeError


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows behind one another, as one model reads them.

    S counts the tokens that are run: a row's last token is not (`table.tokens_run` says why).

    Attributes:
        input_ids: Int64[S].
        cu_seqlens: Int32[n + 1], where each row starts, and S.
        rows: Int64[T], positions in [0, S) whose hidden state predicts a trained token.
        labels: Int64[T], those tokens.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch(PackedRows):
    """Rows that one rank runs at once, without padding.

    Attributes:
        step: Step of the data plan.
        index: Micro-batch within the step.
        data_rows: The rows of the table that are in it, in order.
        teacher: The same rows as the teacher reads them, with U trained tokens; None where it reads
            these.
        pairing: Which of the T and U rows belong together, if the tokenizers differ.
        logprobs: Float32[T], of the labels when the student sampled them; None if it did not.
    """

    step: int
    index: int
    data_rows: tuple[int, ...]
    teacher: PackedRows | None = None
    pairing: Pairing | None = None
    logprobs: Tensor | None = None

    @property
    def asked(self) -> PackedRows:
        """What the teacher is asked."""
        return self if self.teacher is None else self.teacher


def pack(table: TokenTable, rows: Sequence[int], *, step: int, index: int) -> MicroBatch:
    """Pack rows of the table into a micro-batch.

    Args:
        table: The tokenized data.
        rows: Numbers of rows in it; none gives an empty micro-batch, with `cu_seqlens` [0].
        step: Step of the data plan.
        index: Micro-batch within the step.
    """
    chosen = np.asarray(rows, np.int64)
    return MicroBatch(
        *_packed(table, chosen),
        step=step,
        index=index,
        data_rows=tuple(int(row) for row in rows),
        teacher=None if table.teacher is None else PackedRows(*_packed(table.teacher, chosen)),
        pairing=None if table.start is None else _paired(table, chosen),
        logprobs=None if table.logprobs is None else _trained(table, table.logprobs, chosen),
    )


def _packed(table: TokenTable, chosen: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `PackedRows`."""
    starts = table.offsets[chosen]
    lengths = tokens_run(table.lengths[chosen])
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    place = ranges(starts, starts + lengths)  # in the flat table
    # place + 1 stays in the row, since its last token is not run.
    predicting = np.flatnonzero(table.response_mask[place + 1])
    return (
        _int64(table.input_ids[place]),
        torch.from_numpy(ends.astype(np.int32)),
        _int64(predicting),
        _int64(table.input_ids[place[predicting] + 1]),
    )


def _paired(table: TokenTable, chosen: np.ndarray) -> Pairing:
    """Put the rows' places behind one another, so that no two rows share one."""
    teacher = table.teacher
    if teacher is None or teacher.start is None or teacher.end is None:
        raise ShapeError("A token table has places, but its teacher's side has none.")
    if table.start is None or table.end is None:
        raise ShapeError("The teacher's side of a token table has places, but its own has none.")
    sides = []
    for side, end in ((table, table.end), (teacher, teacher.end)):
        trained = ranges(side.response_offsets[chosen], side.response_offsets[chosen + 1])
        counts = side.response_lengths[chosen]
        last = np.zeros(len(chosen), np.int64)
        np.maximum.at(last, np.repeat(np.arange(len(chosen)), counts), end[trained])
        sides.append((trained, np.repeat(np.arange(len(chosen)), counts), last))
    # one place between two rows, so that the end of one is no beginning of the next
    longest = np.maximum(sides[0][2], sides[1][2]) + 1
    base = np.cumsum(longest) - longest
    (student, student_sample, _), (theirs, teacher_sample, _) = sides
    ids = teacher.input_ids[teacher.response_mask.astype(bool)]
    return Pairing(
        student_start=table.start[student] + base[student_sample],
        student_end=table.end[student] + base[student_sample],
        teacher_start=teacher.start[theirs] + base[teacher_sample],
        teacher_end=teacher.end[theirs] + base[teacher_sample],
        student_sample=student_sample,
        teacher_sample=teacher_sample,
        teacher_labels=ids[theirs].astype(np.int64),
    )


def _trained(table: TokenTable, values: np.ndarray, chosen: np.ndarray) -> Tensor:
    """The values of the rows' trained tokens, in order."""
    offsets = table.response_offsets
    return torch.from_numpy(values[ranges(offsets[chosen], offsets[chosen + 1])])


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
