"""Rank 0's connection to the rollout engine: what was asked, what was answered, who comes next."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import TransportError
from kdflow_lab.rollout import parcels
from kdflow_lab.rollout.sampling import Sample, from_arrays
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport import sockets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdflow_lab.transport.segment import WeightSegment

_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What came back for one `submit`.

    Attributes:
        tag: What was given to `submit`.
        samples: By prompt, then by sample.
        seconds: That the rollout engine wrote them.
    """

    tag: Any
    samples: list[Sample]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Tokens that were drawn."""
        return sum(len(sample.ids) for sample in self.samples)


@dataclass(slots=True)
class Asked:
    """A message that has not been answered yet."""

    message: dict[str, Any]
    arrays: dict[str, NDArray] | None = None
    tag: Any = None
    again: bool = False  # the weights in force, sent to an engine that is new

    @property
    def do(self) -> str:
        return self.message["do"]


class Link:
    """Asks in order, takes answers in order, and asks the next engine again when one dies.

    Attributes:
        about: What the engine said of itself: `pid`, `backend`, `why`, `dtype`, `copies`.
        segment: The weights' memory, once there is any.
        front: (version, buffer) of the weights that answer; None for those of the model's folder.
        asked: What was not answered yet, the oldest first.
        answers: What was not received yet.
    """

    def __init__(self, path: str, *, timeout_s: float, patience_s: float) -> None:
        """Connect; see `RolloutEnd`.

        Raises:
            TransportError: Nobody listens.
        """
        self.about: dict[str, Any] = {}
        self.segment: WeightSegment | None = None
        self.front: tuple[int, int] | None = None
        self.asked: deque[Asked] = deque()
        self.answers: deque[Rollouts | TransportError] = deque()
        self._path = path
        self._patience_s = patience_s
        self._channel: wire.Channel | None = None
        self._reason = ""  # why nothing can be asked any more
        self._connect(timeout_s)

    def is_asked(self, do: str) -> bool:
        """Tell whether a message of this kind was not answered yet."""
        return any(one.do == do for one in self.asked)

    def close(self) -> None:
        """Leave; a second call does nothing."""
        self._reason = self._reason or "This end is closed."
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.segment is not None:
            self.segment.close()
            self.segment = None

    def ask(self, asked: Asked) -> None:
        """Send a message that will be answered."""
        self.check()
        self.asked.append(asked)
        try:
            self._send(asked)
        except wire.Gone:
            self._heal()

    def _send(self, asked: Asked) -> None:
        assert self._channel is not None
        if asked.arrays is None:
            self._channel.send(asked.message)
            return
        about, fd = parcels.pack(asked.arrays)
        try:
            self._channel.send({**asked.message, **about}, fd=fd)
        finally:
            os.close(fd)

    def hand_on(self) -> None:
        """Hand the segment over; this has no answer."""
        assert self._channel is not None and self.segment is not None
        try:
            self._channel.send({"do": "weights"}, fd=self.segment.fd)
        except wire.Gone:
            self._heal()

    def take(self, timeout_s: float | None) -> bool:
        """Take the next message; False if none came in time.

        Raises:
            TransportError: The engine has died, or did not take the weights.
        """
        self.check()
        assert self._channel is not None
        try:
            message, fd = self._channel.receive(timeout_s)
        except TimeoutError:
            return False
        except wire.Gone:
            self._heal()
            return True
        if message["said"] == "failed" and message["fatal"]:
            raise self._lost(f"The rollout engine did not take the weights: {message['text']}")
        asked = self.asked.popleft()
        if asked.do == "load":
            self.front = asked.message["version"], asked.message["buffer"]
        elif message["said"] == "failed":
            text = f"The rollout engine could not answer: {message['text']}"
            self.answers.append(TransportError(text))
        elif asked.do == "generate":
            samples = from_arrays(parcels.unpack(message, fd))
            self.answers.append(Rollouts(asked.tag, samples, message["seconds"]))
        return True

    def _connect(self, timeout_s: float) -> None:
        """Wait for the engine to listen and to say who it is."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(_RETRY_S, deadline - time.monotonic())
            try:
                connection = sockets.connect(self._path, timeout_s=left)
                connection.settimeout(None)
                channel = wire.Channel(connection)
                try:
                    self.about, _ = channel.receive(timeout_s=left)
                except (wire.Gone, TimeoutError):
                    channel.close()
                    raise
                self._channel = channel
                return
            except (OSError, wire.Gone) as error:  # a TimeoutError is an OSError
                if time.monotonic() >= deadline:
                    raise TransportError(
                        f"No rollout engine listens at {self._path} after {timeout_s:g} s "
                        f"({error}). Expected one that serves this job; look at its log."
                    ) from None
                time.sleep(_RETRY_S)

    def _heal(self) -> None:
        """Wait for another engine and tell it everything again.

        Raises:
            TransportError: None came, or none is waited for.
        """
        deadline = time.monotonic() + self._patience_s
        before = self.about
        died = (
            f"The rollout engine (pid {before['pid']}) died, or was killed. lab.up(), or "
            "%kdflow up, starts it again."
        )
        while True:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._lost(died)
            try:
                self._connect(left)
            except TransportError:
                raise self._lost(died) from None
            if self.about["dtype"] != before["dtype"]:
                raise self._lost(
                    f"{died} The one that was started computes in {self.about['dtype']}, not in "
                    f"{before['dtype']}."
                )
            try:
                self._replay()
                return
            except wire.Gone:
                time.sleep(_RETRY_S)

    def _replay(self) -> None:
        """Send the weights in force, and all that was not answered.

        A backend that copies weights may have had its buffer written anew since: then the newer
        weights answer, and the samples say so.
        """
        assert self._channel is not None
        self.asked = deque(one for one in self.asked if not one.again)
        if self.segment is not None:
            self._channel.send({"do": "weights"}, fd=self.segment.fd)
            if self.front is not None:
                buffer = self.front[1]
                message = {"do": "load", "version": self.segment.version(buffer), "buffer": buffer}
                self.asked.appendleft(Asked(message, again=True))
        for asked in list(self.asked):
            self._send(asked)

    def _lost(self, reason: str) -> TransportError:
        """Remember why nothing can be asked any more, and build the error."""
        self._reason = reason
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        return TransportError(reason)

    def check(self) -> None:
        if self._reason:
            raise TransportError(self._reason)
