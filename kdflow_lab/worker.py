"""One rank of a run inside a student engine: it joins the others, trains, and says how it ended.

Every rank runs `train` in a thread of its own, which alone drives the process group. Rank 0 is the
run's voice: it holds the lock, reads commands and writes metrics and events. The loop itself is in
`kdflow_lab.training`.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path
from typing import Any

import torch

from kdflow_lab.beats import Beats
from kdflow_lab.errors import RunError, TransportError
from kdflow_lab.jobs import TrainJob
from kdflow_lab.memory import give_back
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.group import is_broken, student_group
from kdflow_lab.training import Training

PEERS_WORD_S = 3.0
"""How long a rank whose collective broke waits for the word of the rank that broke it."""


def train(job: TrainJob) -> None:
    """Run one rank of a run to its end; never raises, since nobody would hear it.

    What goes wrong is said in the run's `failed` event by the rank where it happened first.
    """
    directory = RunDirectory(job.run_path)
    try:
        if job.place.rank == 0:
            directory.lock()
    except RunError as error:
        if not directory.locked():  # else it is another lab's run: nothing may be said in it
            _say_failed(directory, job, error)
        return
    try:
        # Thread count, grad mode and autocast belong to a thread: set what this one needs.
        torch.set_num_threads(job.place.threads)
        torch.manual_seed(job.config["seed"])
        folder = Path(job.place.rendezvous).parent
        with Beats(folder, f"student {job.place.rank}") as beats:
            try:
                with student_group(job.place, timeout_s=job.config["timeout_s"]) as mesh:
                    try:
                        Training(job, directory, mesh, beats).run()
                    except BaseException as error:
                        # Said before the group is destroyed: the peers' broken collectives come
                        # after.
                        _say_failed(directory, job, error, beats)
                        raise
            except BaseException as error:
                _say_failed(directory, job, error, beats)
    finally:
        directory.unlock()
        give_back()


def _say_failed(
    directory: RunDirectory, job: TrainJob, error: BaseException, beats: Beats | None = None
) -> None:
    """Write the `failed` event unless the run has ended already.

    A collective that breaks is never the cause: another rank raised, died or hangs. That rank, or
    the supervisor that watches the processes, gets a moment to say so first.
    """
    rank = job.place.rank
    broken = is_broken(error)
    second_hand = broken or isinstance(error, TransportError)  # who failed may say it better
    deadline = time.monotonic() + (PEERS_WORD_S if second_hand else 0.0)
    with contextlib.suppress(RunError, OSError):
        while not directory.outcome(job.attempt):
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            reason = str(error) or type(error).__name__
            if broken:
                students = [f"student {peer}" for peer in range(job.place.world_size)]
                where = beats.where(students) if beats is not None else ""
                reason = f"Rank {rank} lost another student, which died or hangs: {where}."
            elif advice := _advice(error, job):
                reason = f"{reason.splitlines()[0]} {advice}"
            directory.event("failed", reason=reason, rank=rank, error=type(error).__name__)


def _advice(error: BaseException, job: TrainJob) -> str:
    """What to do about an error that is not ours to explain; empty where we do not know."""
    text = str(error).lower()
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in text or "can't allocate memory" in text or "cannot allocate" in text
    )
    if no_memory or getattr(error, "errno", None) == errno.ENOMEM:
        config: dict[str, Any] = job.config
        steps = [
            f"micro_batch_tokens (now {config['micro_batch_tokens']})",
            f"or chunk_tokens (now {config['chunk_tokens']})",
        ]
        saver = "" if config["activation_checkpointing"] else " or set activation_checkpointing"
        return (
            f"Rank {job.place.rank} ran out of memory. Lower {' '.join(steps)}{saver}, or use more "
            "students; then fork or start the run again."
        )
    return ""
