"""What a run with `cache=True` does: find the cache, say what it will take, put it before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.cache.end import CachingEnd
from kdflow_lab.cache.identity import identity_of
from kdflow_lab.cache.store import Store

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import TrainJob
    from kdflow_lab.transport.student_end import StudentEnd

FOLDER = "hidden_states"
"""Where caches lie in a lab's folder of runs."""


def open_store(
    job: TrainJob,
    config: DistillConfig,
    runs: Path,
    *,
    once: Callable[[Callable[[], Any]], Any],
    on_refused: Callable[[str], None] = lambda reason: None,
) -> Store:
    """Open the cache of a job's teacher.

    Args:
        job: With a teacher.
        config: `cache_dir` is read.
        runs: The lab's folder of runs, where caches lie if `cache_dir` is not given.
        once: Calls a function on one rank and gives all ranks what it returns; hashing a large
            teacher takes a while.
        on_refused: Hears why a part of the cache is not used.

    Raises:
        CacheError: The folder is of another teacher, or cannot be read or made.
    """
    teacher = job.teacher
    assert teacher is not None
    root = Path(config.cache_dir).expanduser() if config.cache_dir else runs / FOLDER
    lab = job.config.get("lab", {})
    identity = once(lambda: identity_of(teacher, root, lab=lab))
    return Store(root / identity.folder, identity, on_refused=on_refused)


def put_before(
    end: StudentEnd,
    job: TrainJob,
    config: DistillConfig,
    *,
    table: TokenTable | None,
    once: Callable[[Callable[[], Any]], Any],
    event: Callable[..., None],
    announce: bool = True,
) -> CachingEnd:
    """Put the cache before a run's ring; every rank calls it.

    Args:
        end: This rank's.
        job: This rank's.
        config: The run's.
        table: All rows that are to be asked for; None where they are not known before.
        once: See `open_store`.
        event: Writes an event, on rank 0.
        announce: Whether an event says what these rows take.

    Raises:
        CacheError: See `open_store`.
    """

    def refused(reason: str) -> None:
        event("warning", message=f"A part of the cache is not used. {reason}")

    def full(reason: str) -> None:
        event("warning", message=f"The cache is not completed. {reason}")

    runs = Path(job.run_path).parent
    store = open_store(job, config, runs, once=once, on_refused=refused)
    if announce:
        event("cache", **sizes(store, table))
    return CachingEnd(end, store, on_full=full)


def sizes(store: Store, table: TokenTable | None = None) -> dict[str, Any]:
    """What a cache has, and what all rows of a run take, in bytes.

    Returns:
        `folder`, `bytes_per_token` (a response token), `there`, `free`, and with a table
        `response_tokens` and `bytes` of its rows.
    """
    said: dict[str, Any] = {
        "folder": str(store.folder),
        "bytes_per_token": store.row_bytes,
        "there": store.num_bytes,
        "free": store.free_bytes,
    }
    if table is not None:
        tokens = int(table.asked.response_lengths.sum())
        said |= {"response_tokens": tokens, "bytes": tokens * store.row_bytes}
    return said
