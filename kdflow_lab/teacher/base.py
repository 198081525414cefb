"""What a teacher is, and the loop in which it serves the students of one job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.messages import Kind

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
        asleep: It gave its GPU's memory away and has to `wake` before it can `fill`.
    """

    backend: str
    hidden_size: int
    dtype: torch.dtype
    batch_tokens: int
    asleep: bool

    def fill(self, requests: Sequence[Request]) -> None:
        """Run packed rows and write the wanted final-norm hidden states, once, into their slots.

        Args:
            requests: At least one, each with S > 0 tokens; in the data plan's order. What is
                wanted is `rows`, where it goes `out`, dtype[T, H] in the ring.

        Raises:
            Exception: They could not be computed; the text goes to the students.
        """
        ...

    def sleep(self) -> None:
        """Give its GPU's memory to the students; `asleep` is True from now on. Nothing on a CPU.

        Raises:
            Exception: It cannot; the text goes to the students.
        """
        ...

    def wake(self) -> None:
        """Take the memory back, and compute the same as before; `asleep` is False from now on.

        Raises:
            Exception: It cannot, or does not; the text goes to the students.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, processes of its own among it; a second call does nothing."""
        ...


def serve(
    teacher: Teacher,
    end: TeacherEnd,
    turn: contextlib.AbstractContextManager[object] | None = None,
    *,
    aside: bool = False,
) -> None:
    """Answer the students' requests until all of them have finished or `end` is closed.

    A request that fails is answered with its reason and ends the student's run, not the teacher. A
    student that dies ends the serving: the others are told why, and say so in the run directory.

    Students that share a GPU with the teacher ask in phases: the teacher waits until every rank has
    asked for all of its phase, computes that, sleeps, and only then answers.

    Args:
        teacher: Computes the rows.
        end: Where the requests come from.
        turn: Held while the teacher computes, where several threads use it; may be entered again.
            Waiting for it does not count as the teacher's time.
        aside: A teacher that sleeps is only woken for an answer, since the students of a training
            have its memory.
    """
    turn = contextlib.nullcontext() if turn is None else turn
    dtype_name = str(teacher.dtype).removeprefix("torch.")
    waiting: list[list[Request]] = []
    with contextlib.suppress(TransportError):
        for requests in end.batches(
            hidden_size=teacher.hidden_size,
            dtype_name=dtype_name,
            most_tokens=teacher.batch_tokens,
        ):
            waiting.append(requests)
            if not _complete(waiting, end.num_active):
                continue
            in_phases = waiting[0][0].kind is not Kind.REQUEST
            with turn:
                sleeps = in_phases or (aside and teacher.asleep)
                answers = _answers(teacher, waiting, sleeps=sleeps)
            for request, answer in answers:
                if isinstance(answer, str):
                    end.fail(request, answer)
                else:
                    end.publish(request, answer)
            waiting.clear()


def _complete(waiting: Sequence[Sequence[Request]], num_active: int) -> bool:
    """Tell whether to answer now: at once, or when every rank has asked for all of its phase."""
    kinds = [request.kind for requests in waiting for request in requests]
    return kinds[0] is Kind.REQUEST or kinds.count(Kind.PHASE) >= num_active


def _answers(
    teacher: Teacher, waiting: Sequence[Sequence[Request]], *, sleeps: bool
) -> list[tuple[Request, float | str]]:
    """Compute requests, list by list; `sleeps` says whether the teacher sleeps afterwards.

    Returns:
        Each request with the seconds that it took, or with why it failed.
    """
    answers: list[tuple[Request, float | str]] = []
    try:
        asked = any(request.num_tokens for requests in waiting for request in requests)
        if teacher.asleep and asked:  # a cache may have it all
            teacher.wake()
        for requests in waiting:
            seconds_per_token = 0.0
            if wanted := [request for request in requests if request.num_tokens]:
                start = time.perf_counter()
                teacher.fill(wanted)
                seconds = time.perf_counter() - start
                seconds_per_token = seconds / sum(request.num_tokens for request in wanted)
            answers += [(one, seconds_per_token * one.num_tokens) for one in requests]
        if sleeps and not teacher.asleep:
            teacher.sleep()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return [(request, why) for requests in waiting for request in requests]
    return answers
