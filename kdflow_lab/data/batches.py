"""Micro-batches: rows packed behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.data.table import TokenTable, tokens_run


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that one rank runs at once, without padding.

    S counts the tokens that are run: a row's last token is not (`table.tokens_run` says why).

    Attributes:
        step: Step of the data plan.
        index: Micro-batch within the step.
        input_ids: Int64[S].
        cu_seqlens: Int32[n + 1], where each row starts, and S.
        rows: Int64[T], positions in [0, S) whose hidden state predicts a trained token.
        labels: Int64[T], those tokens.
        data_rows: The rows of the table that are in it, in order.
    """

    step: int
    index: int
    input_ids: Tensor
    cu_seqlens: Tensor
    rows: Tensor
    labels: Tensor
    data_rows: tuple[int, ...]


def pack(table: TokenTable, rows: Sequence[int], *, step: int, index: int) -> MicroBatch:
    """Pack rows of the table into a micro-batch.

    Args:
        table: The tokenized data.
        rows: Numbers of rows in it; none gives an empty micro-batch, with `cu_seqlens` [0].
        step: Step of the data plan.
        index: Micro-batch within the step.
    """
    chosen = np.asarray(rows, np.int64)
    starts = table.offsets[chosen]
    lengths = tokens_run(table.lengths[chosen])
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    place = np.repeat(starts, lengths) + positions  # in the flat table
    # place + 1 stays in the row, since its last token is not run.
    predicting = np.flatnonzero(table.response_mask[place + 1])
    return MicroBatch(
        step=step,
        index=index,
        input_ids=_int64(table.input_ids[place]),
        cu_seqlens=torch.from_numpy(ends.astype(np.int32)),
        rows=_int64(predicting),
        labels=_int64(table.input_ids[place[predicting] + 1]),
        data_rows=tuple(int(row) for row in rows),
    )


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
