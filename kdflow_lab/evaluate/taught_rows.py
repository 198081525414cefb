"""Rows of held-out data with the teacher's hidden states, which are asked for once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kdflow_lab.errors import TransportError
from kdflow_lab.evaluate.batches import ask, batches_of, connect
from kdflow_lab.student.group import gather

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.cache.end import CachingEnd
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import StudentPlace, TeacherInfo
    from kdflow_lab.transport.student_end import StudentEnd


class TaughtRows:
    """A rank's share of fixed rows, in micro-batches, each with its teacher's hidden states.

    Neither the rows nor the teacher change during a run, so the teacher is asked at the first use
    and never again. What it says is kept in host memory, in its own dtype. That costs, over all
    ranks, response tokens of the rows x teacher's hidden size x bytes of the dtype: 256 rows of 128
    response tokens of a teacher that is 4096 wide take 256 MiB in bfloat16.
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        teacher: TeacherInfo | None,
        place: StudentPlace,
        timeout_s: float | None = None,
        before: Callable[[StudentEnd], CachingEnd] | None = None,
    ) -> None:
        """Cut the rows; nobody is asked yet.

        Args:
            table: The same on every rank; not empty.
            teacher: None for rows without a teacher.
            place: This rank's; with a teacher, it must have the meeting point `aside`.
            timeout_s: How long to wait for an answer of the teacher; None as long as it lives.
            before: Puts a cache before the ring; None asks the teacher for everything.

        Raises:
            TransportError: There is a teacher, but nowhere to meet it.
        """
        if teacher is not None and place.aside is None:
            raise TransportError(
                f"Rank {place.rank} has no place to ask the teacher for held-out rows. Expected "
                "StudentPlace.aside, the path where roles.serve listens for evaluations."
            )
        self.table = table
        self.batches = batches_of(table, rank=place.rank, world_size=place.world_size)
        self._teacher = teacher
        self._place = place
        self._timeout_s = timeout_s
        self._before = before
        self._hidden: list[Tensor] | None = None

    def __iter__(self) -> Iterator[tuple[MicroBatch, Tensor | None]]:
        """Yield the micro-batches with the teacher's rows, dtype[T, Ht] on the CPU, or None.

        All ranks iterate together, and get equally many; the first time asks the teacher.

        Raises:
            TransportError: The teacher failed or died, or a rank could not reach it.
        """
        if self._teacher is None:
            yield from ((batch, None) for batch in self.batches)
            return
        if self._hidden is None:
            self._hidden = self._asked(self._teacher)
        yield from zip(self.batches, self._hidden, strict=True)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the teacher's rows that this rank keeps; 0 before they were asked for."""
        return sum(rows.nbytes for rows in self._hidden or [])

    def _asked(self, teacher: TeacherInfo) -> list[Tensor]:
        """Ask the teacher for this rank's rows, beside the requests of the training."""
        place, end, problem = self._place, None, ""
        try:
            end = connect(
                self.batches,
                place.aside or "",
                rank=place.rank,
                world_size=place.world_size,
                teacher=teacher,
            )
        except Exception as error:
            problem = f"Rank {place.rank}: {error}"
        # The teacher would wait for a rank that cannot come, and its peers for the teacher, in no
        # collective that would break: so they say to each other whether all are there.
        problems = list(filter(None, gather(problem)))
        if problems or end is None:
            if end is not None:
                end.abandon()  # a session of some ranks only must not go on
            raise TransportError(f"Held-out rows cannot be scored. {' '.join(problems)}")
        with end if self._before is None else self._before(end) as asked:
            return [rows.clone() for _, rows in ask(self.batches, asked, self._timeout_s)]
