"""The students' end of the rollout engine: weights go there, prompts too, samples come back.

Every rank has one, since all take part in `sync`; only rank 0 is connected. A rollout engine that
dies is noticed at once. With `patience_s` its successor is waited for, gets the weights again and
all that was not answered: with the transformers backend the very same samples come back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from kdflow_lab.errors import KDFlowLabError, TransportError
from kdflow_lab.rollout import parcels
from kdflow_lab.rollout._link import Asked, Link, Rollouts
from kdflow_lab.rollout.weights import BUCKET_BYTES, entries_of, write
from kdflow_lab.student.group import made_by_leader, share
from kdflow_lab.transport.segment import WeightSegment

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from kdflow_lab.rollout.sampling import Sampling

SHORT_S = 0.5
"""How long all ranks wait in one collective for an engine that is about to be idle."""


class RolloutEnd:
    """One rank's end; for the thread that drives the process group."""

    def __init__(
        self,
        path: str,
        *,
        rank: int = 0,
        buffers: int = 1,
        bucket_bytes: int = BUCKET_BYTES,
        timeout_s: float = 60.0,
        patience_s: float = 0.0,
    ) -> None:
        """Connect, on rank 0.

        Args:
            path: Where the rollout engine listens (`StudentPlace.rollouts`).
            rank: This student's.
            buffers: Of the weights. With two, `sync` need not wait for answers that are being
                written; it costs the memory of the weights once more.
            bucket_bytes: Largest part of the weights that is gathered at once.
            timeout_s: Seconds to wait for the engine to listen.
            patience_s: Seconds to wait for another engine when this one dies; 0 raises at once.

        Raises:
            TransportError: Nobody listens.
        """
        self._buffers = buffers
        self._bucket_bytes = bucket_bytes
        self._link_of_leader: Link | None = None
        if rank == 0:
            self._link_of_leader = Link(path, timeout_s=timeout_s, patience_s=patience_s)

    @property
    def about(self) -> dict[str, Any]:
        """What the engine said of itself: `pid`, `backend`, `why`, `dtype`, `copies`.

        Raises:
            TransportError: This is not rank 0.
        """
        return self._link.about

    # -- weights --------------------------------------------------------------------------------

    def sync(self, student: Any, *, version: int) -> float:
        """Give the student's weights to the rollout engine; every rank calls it.

        What is submitted afterwards is answered with them; what was submitted before is not.

        Args:
            student: A `Student`, or its model.
            version: Of the weights: the optimizer step. Every sample says it.

        Returns:
            Seconds it took, waiting for the engine included.

        Raises:
            TransportError: On all ranks: the engine has died, or there is no memory.
            ModelError: The student is sharded or adapted in a way that cannot be handed over.
        """
        start = time.perf_counter()
        model = student if isinstance(student, torch.nn.Module) else student.model
        said = self._together(lambda: self._prepare(model, SHORT_S))
        if said.get("busy"):
            said = self._together(lambda: self._prepare(model, None), long=True)
        link, buffer = self._link_of_leader, said["buffer"]
        write(
            model,
            None if link is None else link.segment,
            dtype=getattr(torch, said["dtype"]),
            version=version,
            buffer=buffer,
            bucket_bytes=self._bucket_bytes,
        )
        if link is not None:
            link.ask(Asked({"do": "load", "version": version, "buffer": buffer}))
        return time.perf_counter() - start

    def _together(
        self, prepare: Callable[[], dict[str, Any]], *, long: bool = False
    ) -> dict[str, Any]:
        """Let rank 0 prepare and tell all ranks how it went; they raise what it raised."""

        def caught() -> dict[str, Any]:
            try:
                return prepare()
            except KDFlowLabError as error:
                return {"error": str(error)}

        if not dist.is_initialized():
            said = caught()
        elif long:
            said = share(made_by_leader(caught))
        else:
            said = share(None if self._link_of_leader is None else caught())
        if "error" in said:
            raise TransportError(said["error"])
        return said

    def _prepare(self, model: torch.nn.Module, timeout_s: float | None) -> dict[str, Any]:
        """Find a buffer that nobody reads; on rank 0.

        Returns:
            `buffer` and `dtype`, or `busy` if none became free in time.
        """
        link = self._link
        link.check()
        if link.segment is None:
            entries = entries_of(model, getattr(torch, link.about["dtype"]))
            link.segment = WeightSegment.create(entries, buffers=self._buffers)
            link.hand_on()
        while link.take(0):  # what has been answered already
            pass
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        buffer = self._free_buffer()
        if buffer is None:
            if not link.is_asked("hold"):
                link.ask(Asked({"do": "hold"}))
            while link.is_asked("hold"):
                if not link.take(_left(deadline)):
                    return {"busy": True}
            buffer = self._free_buffer()
            buffer = 0 if buffer is None else buffer  # the only one, which an idle engine has
        return {"buffer": buffer, "dtype": link.about["dtype"]}

    def _free_buffer(self) -> int | None:
        """A buffer that is neither read nor about to be; None if there is none."""
        link = self._link
        used = {one.message["buffer"] for one in link.asked if one.do == "load"}
        if link.front is not None and not link.about["copies"]:
            used.add(link.front[1])
        return next((one for one in range(self._buffers) if one not in used), None)

    # -- samples --------------------------------------------------------------------------------

    def submit(self, prompts: Sequence[NDArray], sampling: Sampling, tag: Any = None) -> None:
        """Ask for answers, on rank 0; returns at once. Several may be asked for, in order.

        Args:
            prompts: Integer[length] each, token ids; none empty.
            sampling: How.
            tag: Comes back with the samples.

        Raises:
            TransportError: The rollout engine has died.
        """
        message = {"do": "generate", "sampling": dataclasses.asdict(sampling)}
        self._link.ask(Asked(message, parcels.joined(prompts), tag))

    @property
    def pending(self) -> int:
        """Requests whose samples were not received yet."""
        link = self._link
        return len(link.answers) + sum(one.do == "generate" for one in link.asked)

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Tell whether `receive` would not wait, after waiting for up to `timeout_s` seconds.

        Raises:
            TransportError: The rollout engine has died.
        """
        link, deadline = self._link, time.monotonic() + timeout_s
        while not link.answers and link.take(max(0.0, deadline - time.monotonic())):
            pass
        return bool(link.answers)

    def receive(self, timeout_s: float | None = None) -> Rollouts:
        """Wait for the oldest request's samples, on rank 0.

        Args:
            timeout_s: Seconds to wait; None waits for as long as the engine lives.

        Raises:
            TransportError: The engine has died, could not answer this request, or the time is over.
        """
        link = self._link
        if not self.pending:
            raise TransportError("Nothing to receive: no prompts were submitted.")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not link.answers:
            if not link.take(_left(deadline)):
                raise TransportError(
                    f"The rollout engine (pid {link.about['pid']}) has not answered within "
                    f"{timeout_s:g} s. Lower max_new_tokens or n, or wait longer."
                )
        answer = link.answers.popleft()
        if isinstance(answer, TransportError):
            raise answer
        return answer

    def close(self) -> None:
        """Leave; a second call does nothing."""
        if self._link_of_leader is not None:
            self._link_of_leader.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def _link(self) -> Link:
        if self._link_of_leader is None:
            raise TransportError("Only rank 0 speaks with the rollout engine.")
        return self._link_of_leader


def _left(deadline: float | None) -> float | None:
    """Seconds until a deadline; None for none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
