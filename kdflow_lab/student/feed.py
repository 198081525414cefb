"""The student's side of the pipeline: micro-batches go to the teacher ahead of their use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from kdflow_lab.cache.end import CachingEnd
from kdflow_lab.transport.messages import Kind

if TYPE_CHECKING:
    from kdflow_lab.cache.end import CachedRows
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.transport.student_end import HiddenRows, StudentEnd


class TeacherFeed:
    """Yields micro-batches with the teacher's hidden rows, keeping the ring's slots full.

    While the student trains on micro-batch k, the teacher works on k+1 … k+depth: each `next` first
    fills every free slot, then waits for the oldest answer. Without a teacher (SFT) the
    micro-batches come alone. With a `phase` the two take turns instead, since they share a GPU.
    """

    def __init__(
        self,
        batches: Iterator[MicroBatch | None],
        end: StudentEnd | CachingEnd | None,
        *,
        ahead: bool = True,
        timeout_s: float | None = None,
        phase: int | None = None,
        threads: tuple[int, int] | None = None,
    ) -> None:
        """Take the micro-batches in the plan's order; nothing is sent before the first `next`.

        Args:
            batches: This rank's micro-batches; None where there is none for the present.
            end: Where the teacher is asked; None for micro-batches alone.
            ahead: False asks for a micro-batch only when it is needed: teacher and students take
                turns instead of working at the same time (`depth=0`).
            timeout_s: How long to wait for an answer of the teacher; None as long as it lives.
            phase: Micro-batches that are asked for together, when all before are used; at most as
                many as the ring has slots. The teacher sleeps while they are used. None does not
                take turns.
            threads: CPU threads of this thread's matrix products while the teacher works beside,
                and while it rests because the cache has all that it would be asked for.
        """
        self._batches = batches
        self._end = end
        self._ahead = ahead
        self._phase = phase
        self._threads = threads
        self._timeout_s = timeout_s if phase is None or timeout_s is None else phase * timeout_s
        self._sent: deque[MicroBatch] = deque()
        self.wait_s = 0.0
        """Seconds spent waiting for the teacher since the last `take_times`."""
        self.teacher_s = 0.0
        """Seconds the teacher computed for what was received since the last `take_times`."""

    def next(self) -> tuple[MicroBatch, HiddenRows | CachedRows | None]:
        """Return the next micro-batch; release its rows right after the loss.

        Raises:
            StopIteration: The batches have ended.
            TransportError: The teacher failed or died.
        """
        if self._end is None:
            batch = next(self._batches, None)
            if batch is None:
                raise StopIteration
            return batch, None
        if self._phase is None:
            self._fill()
        elif not self._sent:
            self._ask_phase(self._phase)
        if not self._sent:
            raise StopIteration
        start = time.perf_counter()
        rows = self._end.receive(self._timeout_s)
        self.wait_s += time.perf_counter() - start
        self.teacher_s += rows.teacher_s
        if self._threads is not None and isinstance(self._end, CachingEnd):
            beside, alone = self._threads
            torch.set_num_threads(alone if self._end.teacher_rests else beside)
        return self._sent.popleft(), rows

    def refill(self) -> None:
        """Let the teacher go on; call it as soon as rows were released."""
        if self._ahead and self._phase is None:
            self._fill()

    def _fill(self) -> None:
        """Send micro-batches while slots are free."""
        while self._end is not None and self._end.can_submit:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._ask(self._end, batch, Kind.REQUEST)

    def _ask_phase(self, most: int) -> None:
        """Send the micro-batches of the next phase, and leave this GPU's memory to the teacher."""
        assert self._end is not None
        batches: list[MicroBatch] = []
        while len(batches) < most and (batch := next(self._batches, None)) is not None:
            batches.append(batch)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        for number, batch in enumerate(batches, 1):
            self._ask(self._end, batch, Kind.PHASE if number == len(batches) else Kind.HOLD)

    def _ask(self, end: StudentEnd | CachingEnd, batch: MicroBatch, kind: Kind) -> None:
        end.submit(
            step=batch.step,
            index=batch.index,
            input_ids=batch.asked.input_ids,
            cu_seqlens=batch.asked.cu_seqlens,
            rows=batch.asked.rows,
            kind=kind,
        )
        self._sent.append(batch)

    def take_times(self) -> tuple[float, float]:
        """Return and reset (seconds waited, seconds the teacher computed)."""
        times = (self.wait_s, self.teacher_s)
        self.wait_s = self.teacher_s = 0.0
        return times
