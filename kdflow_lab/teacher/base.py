"""What a teacher is, and the loop in which it serves the students of one job."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol

from kdflow_lab.errors import TransportError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdflow_lab.transport.teacher_end import TeacherEnd


class Teacher(Protocol):
    """A frozen model that writes hidden states where it is told.

    Attributes:
        backend: `transformers` or `sglang`.
        hidden_size: Columns of a hidden row.
        dtype: Of the rows; the teacher's own.
    """

    backend: str
    hidden_size: int
    dtype: torch.dtype

    def hidden_states(
        self, input_ids: Tensor, cu_seqlens: Tensor, rows: Tensor, out: Tensor
    ) -> None:
        """Run packed rows and write the wanted final-norm hidden states, once, into `out`.

        Args:
            input_ids: Int32[S] on the CPU, rows end to end; S > 0.
            cu_seqlens: Int32[n + 1] on the CPU: where each row starts, and S.
            rows: Int32[T], positions in [0, S) whose hidden states are wanted.
            out: dtype[T, H] in the ring.
        """
        ...


def serve(teacher: Teacher, end: TeacherEnd) -> None:
    """Answer the students' requests until all of them have finished or `end` is closed.

    A request that fails is answered with its reason and ends the student's run, not the teacher. A
    student that dies ends the serving: the others are told why, and say so in the run directory.
    """
    dtype_name = str(teacher.dtype).removeprefix("torch.")
    with contextlib.suppress(TransportError):
        for request in end.requests(hidden_size=teacher.hidden_size, dtype_name=dtype_name):
            start = time.perf_counter()
            try:
                if request.input_ids.numel():
                    teacher.hidden_states(
                        request.input_ids, request.cu_seqlens, request.rows, request.out
                    )
            except Exception as error:
                end.fail(request, f"{type(error).__name__}: {error}")
            else:
                end.publish(request, time.perf_counter() - start)
