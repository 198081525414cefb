"""Filling a cache of hidden states without training, inside the student engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdflow_lab.cache.end import CachingEnd
from kdflow_lab.cache.run import open_store, sizes
from kdflow_lab.cache.store import Store, row_keys
from kdflow_lab.config import DistillConfig
from kdflow_lab.data.batches import MicroBatch
from kdflow_lab.errors import CacheError
from kdflow_lab.evaluate.batches import ask, batches_of, connect
from kdflow_lab.jobs import TrainJob
from kdflow_lab.prepare import meeting, tokenized_data


def capture(
    job: TrainJob,
    on_sizes: Callable[[dict[str, Any]], None],
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Ask the teacher for this rank's share of the rows that the cache lacks, and keep them.

    Args:
        job: Whose run directory lies in the lab's folder of runs; it need not exist.
        on_sizes: Called once, before the teacher is asked, with what this rank's share takes.
        on_progress: Called with (micro-batches done, micro-batches in all) of this rank.

    Returns:
        This rank's part of `Captured`.

    Raises:
        CacheError: The folder is of another teacher, or the disk is full; what is whole is kept.
        DataError: A row cannot be used, or none is left.
        TransportError: The teacher failed or died.
    """
    torch.set_num_threads(job.place.threads)
    place, teacher = job.place, job.teacher
    assert teacher is not None
    config = DistillConfig.parse(**DistillConfig.fields_in(job.config))
    table = tokenized_data(job, config, meeting(job, config.algorithm)).table
    batches = batches_of(table, rank=place.rank, world_size=place.world_size)
    refused: list[str] = []
    runs = Path(job.run_path).parent
    store = open_store(job, config, runs, once=lambda make: make(), on_refused=refused.append)
    on_sizes(_sizes(store, batches))
    end = CachingEnd(
        connect(
            batches,
            place.socket or "",
            rank=place.rank,
            world_size=place.world_size,
            teacher=teacher,
        ),
        store,
    )
    with end:
        for number, _ in enumerate(ask(batches, end), 1):
            if store.full:
                raise CacheError(store.full)
            on_progress(number, len(batches))
    asked, cached = end.take_counts()
    return {
        "folder": str(store.folder),
        "rows": sum(len(batch.data_rows) for batch in batches),
        "tokens": asked,
        "computed": asked - cached,
        "bytes_per_token": store.row_bytes,
        "written": store.written_bytes,
        "refused": refused,
    }


def _sizes(store: Store, batches: list[MicroBatch]) -> dict[str, Any]:
    """What a rank's micro-batches take, and what of it is not there."""
    tokens = missing = 0
    for batch in batches:
        ends, rows = batch.asked.cu_seqlens.numpy(), batch.asked.rows.numpy()
        keys, cuts = row_keys(batch.asked.input_ids.numpy(), ends, rows)
        tokens += len(rows)
        missing += sum(
            int(count) for count, key in zip(np.diff(cuts), keys, strict=True) if key not in store
        )
    return {**sizes(store), "tokens": tokens, "missing": missing}
