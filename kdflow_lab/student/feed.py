"""The student's side of the pipeline: micro-batches go to the teacher ahead of their use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.transport.student_end import HiddenRows, StudentEnd


class TeacherFeed:
    """Yields micro-batches with the teacher's hidden rows, keeping the ring's slots full.

    While the student trains on micro-batch k, the teacher works on k+1 … k+depth: each `next` first
    fills every free slot, then waits for the oldest answer. Without a teacher (SFT) the
    micro-batches come alone.
    """

    def __init__(
        self,
        batches: Iterator[MicroBatch | None],
        end: StudentEnd | None,
        *,
        ahead: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Take the micro-batches in the plan's order; nothing is sent before the first `next`.

        Args:
            batches: This rank's micro-batches; None where there is none for the present.
            end: Where the teacher is asked; None for micro-batches alone.
            ahead: False asks for a micro-batch only when it is needed: teacher and students take
                turns instead of working at the same time (`depth=0`).
            timeout_s: How long to wait for an answer of the teacher; None as long as it lives.
        """
        self._batches = batches
        self._end = end
        self._ahead = ahead
        self._timeout_s = timeout_s
        self._sent: deque[MicroBatch] = deque()
        self.wait_s = 0.0
        """Seconds spent waiting for the teacher since the last `take_times`."""
        self.teacher_s = 0.0
        """Seconds the teacher computed for what was received since the last `take_times`."""

    def next(self) -> tuple[MicroBatch, HiddenRows | None]:
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
        self._fill()
        if not self._sent:
            raise StopIteration
        start = time.perf_counter()
        rows = self._end.receive(self._timeout_s)
        self.wait_s += time.perf_counter() - start
        self.teacher_s += rows.teacher_s
        return self._sent.popleft(), rows

    def refill(self) -> None:
        """Let the teacher go on; call it as soon as rows were released."""
        if self._ahead:
            self._fill()

    def _fill(self) -> None:
        """Send micro-batches while slots are free."""
        while self._end is not None and self._end.can_submit:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._end.submit(
                step=batch.step,
                index=batch.index,
                input_ids=batch.input_ids,
                cu_seqlens=batch.cu_seqlens,
                rows=batch.rows,
            )
            self._sent.append(batch)

    def take_times(self) -> tuple[float, float]:
        """Return and reset (seconds waited, seconds the teacher computed)."""
        times = (self.wait_s, self.teacher_s)
        self.wait_s = self.teacher_s = 0.0
        return times
