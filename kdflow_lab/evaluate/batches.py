"""Rows to be scored: dealt out in micro-batches, asked of the teacher, summed by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from kdflow_lab.cache.end import CachingEnd
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import TeacherInfo
    from kdflow_lab.losses import PerToken

BATCH_TOKENS = 4096
"""Tokens scored at once."""
AHEAD = 2
"""Batches that the teacher may be ahead."""


def share_of(table: TokenTable, *, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the rows of a rank, Int64[its rows]: the longest first, dealt out in turn.

    So every rank gets as many rows and about as many tokens.
    """
    return np.argsort(-table.longest_lengths, kind="stable")[rank::world_size]


def batches_of(table: TokenTable, *, rank: int, world_size: int) -> list[MicroBatch]:
    """Cut a rank's share into micro-batches; all ranks have as many, the last ones may be empty.

    The teacher serves the ranks in turn, and ranks of a sharded model meet in every forward pass:
    all must run the same numbers of micro-batches.
    """
    cuts = [
        _cut(table, share_of(table, rank=other, world_size=world_size))
        for other in range(world_size)
    ]
    mine = cuts[rank]
    return [
        pack(table, mine[index] if index < len(mine) else [], step=0, index=index)
        for index in range(max(map(len, cuts)))
    ]


def _cut(table: TokenTable, share: NDArray[np.int64]) -> list[list[int]]:
    """Cut rows into lists of at most `BATCH_TOKENS` tokens (a longer row is alone)."""
    lists: list[list[int]] = []
    room = 0
    for row in map(int, share):
        length = int(table.longest_lengths[row])
        if not lists or length > room:
            lists.append([])
            room = BATCH_TOKENS
        lists[-1].append(row)
        room -= length
    return lists


def connect(
    batches: Sequence[MicroBatch],
    socket: str,
    *,
    rank: int,
    world_size: int,
    teacher: TeacherInfo,
) -> StudentEnd:
    """Open a ring to the teacher whose slots fit these micro-batches.

    Raises:
        TransportError: No memory, no teacher, or a teacher that refuses this rank.
    """
    layout = SlotLayout(
        max_tokens=max(batch.asked.input_ids.numel() for batch in batches),
        max_sequences=max(len(batch.data_rows) for batch in batches),
        max_rows=max(batch.asked.rows.numel() for batch in batches),
        hidden_size=teacher.hidden_size,
        dtype_name=teacher.dtype,
    )
    return StudentEnd(socket, rank=rank, world_size=world_size, layout=layout, slots=AHEAD)


def ask(
    batches: Sequence[MicroBatch], end: StudentEnd | CachingEnd, timeout_s: float | None = None
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Yield each micro-batch with the teacher's rows, dtype[T, Ht] in the ring until the next one.

    Raises:
        TransportError: The teacher failed or died.
    """
    feed = TeacherFeed(iter(batches), end, timeout_s=timeout_s)
    for _ in batches:
        batch, rows = feed.next()
        assert rows is not None  # the feed has an end
        yield batch, rows.tensor
        rows.release()
        feed.refill()


def row_sums(
    batch: MicroBatch, tokens: PerToken, table: TokenTable
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Sum per-token values over the response tokens of each row of a micro-batch.

    Args:
        batch: With n rows, at least one.
        tokens: Of its T response tokens.
        table: That it was packed from.

    Returns:
        Int64[n], response tokens of each row; and Float64[n] for each of `ce` (nats, of all these
        tokens), `compared` (tokens that the teacher has a row for), and of those `kl` (nats) and
        `agreement` (tokens). Without a teacher nothing is compared.
    """
    counts = table.response_lengths[np.asarray(batch.data_rows, dtype=np.int64)]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    compared = ~tokens.agreement.isnan()  # and not by kl, which is NaN in a student that diverged
    columns = {
        "kl": tokens.kd.where(compared, 0.0),
        "ce": tokens.ce,
        "agreement": tokens.agreement.where(compared, 0.0),
        "compared": compared,
    }
    return counts, {
        name: np.add.reduceat(values.double().cpu().numpy(), starts)
        for name, values in columns.items()
    }
