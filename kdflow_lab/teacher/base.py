"""What a teacher is, and the loop in which it serves the students of one job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kdflow_lab.errors import TransportError

if TYPE_CHECKING:
    import torch

    from kdflow_lab.transport.request import Request
    from kdflow_lab.transport.teacher_end import TeacherEnd


class Teacher(Protocol):
    """A frozen model that writes hidden states where it is told.

    Attributes:
        backend: `transformers` or `sglang`.
        hidden_size: Columns of a hidden row.
        dtype: Of the rows; the teacher's own.
        batch_tokens: Tokens of waiting requests that it takes at once; 0 for one request a time.
    """

    backend: str
    hidden_size: int
    dtype: torch.dtype
    batch_tokens: int

    def fill(self, requests: Sequence[Request]) -> None:
        """Run packed rows and write the wanted final-norm hidden states, once, into their slots.

        Args:
            requests: At least one, each with S > 0 tokens; in the data plan's order. What is
                wanted is `rows`, where it goes `out`, dtype[T, H] in the ring.

        Raises:
            Exception: They could not be computed; the text goes to the students.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, processes of its own among it; a second call does nothing."""
        ...


def serve(
    teacher: Teacher,
    end: TeacherEnd,
    turn: contextlib.AbstractContextManager[object] | None = None,
) -> None:
    """Answer the students' requests until all of them have finished or `end` is closed.

    A request that fails is answered with its reason and ends the student's run, not the teacher. A
    student that dies ends the serving: the others are told why, and say so in the run directory.

    Args:
        teacher: Computes the rows.
        end: Where the requests come from.
        turn: Held while the teacher computes, where several threads use it; may be entered again.
            Waiting for it does not count as the teacher's time.
    """
    turn = contextlib.nullcontext() if turn is None else turn
    dtype_name = str(teacher.dtype).removeprefix("torch.")
    with contextlib.suppress(TransportError):
        for requests in end.batches(
            hidden_size=teacher.hidden_size,
            dtype_name=dtype_name,
            most_tokens=teacher.batch_tokens,
        ):
            seconds_per_token = 0.0
            try:
                if wanted := [request for request in requests if request.num_tokens]:
                    with turn:
                        start = time.perf_counter()
                        teacher.fill(wanted)
                        seconds = time.perf_counter() - start
                    seconds_per_token = seconds / sum(request.num_tokens for request in wanted)
            except Exception as error:
                for request in requests:
                    end.fail(request, f"{type(error).__name__}: {error}")
            else:
                for request in requests:
                    end.publish(request, seconds_per_token * request.num_tokens)
