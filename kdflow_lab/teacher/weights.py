"""How a teacher that follows the student gets its weights: one thread, between two micro-batches.

    rank 0 -> teacher's engine                      teacher's engine -> rank 0
    weights   the segment, as a descriptor          taken     its parameters are the model's
    load      this version lies in it now           loaded    and computes from now on; drift
                                                    failed    why not (text)

The socket is AF_UNIX SEQPACKET, the messages are those of `teacher.sglang.wire`. The students ask
for nothing that belongs behind an update before it is `loaded`, and have received everything that
belongs before it; so the segment needs one buffer, and `Turns` only keeps evaluations out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from kdflow_lab.errors import KDFlowLabError, TransportError
from kdflow_lab.teacher.base import Teacher
from kdflow_lab.teacher.service import Service
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport.segment import WeightSegment

if TYPE_CHECKING:
    from kdflow_lab.teacher.serving import Turns


class Follower(Teacher, Protocol):
    """A teacher whose weights can be replaced while it is up.

    Attributes:
        version: Of its weights: the student's step; `NO_VERSION` for those of its folder.
    """

    version: int

    def weights(self, segment: WeightSegment) -> None:
        """Take the memory where weights will lie; it belongs to the teacher from now on.

        Raises:
            ModelError: Its parameters are not those of the teacher's model.
            ConfigError: The teacher runs in a way in which weights cannot be replaced.
        """
        ...

    def load(self, version: int) -> dict[str, float]:
        """Compute with the segment's weights from now on; let the canary look.

        Returns:
            What the canary measured, as `canary.judge` returns it.

        Raises:
            ModelError: They cannot be loaded, or its rows drifted.
            TransportError: The segment does not hold this version.
        """
        ...

    def restore(self) -> None:
        """Be the model of its folder again; nothing if it is.

        Raises:
            ModelError: That cannot be loaded.
        """
        ...


class WeightServing:
    """Gives a teacher the weights of one job's students; made for the job, then closed."""

    def __init__(self, teacher: Follower, path: str, turns: Turns, *, threads: int) -> None:
        """Listen, and begin to serve.

        Args:
            teacher: Is called within its turn.
            path: The socket; in a folder of this user's alone.
            turns: Of whoever else calls the teacher.
            threads: CPU threads of the canary's matrix products.

        Raises:
            TransportError: The socket cannot be made.
        """
        self._teacher, self._turns = teacher, turns
        self._service = Service(path, self._serve, name="weights", threads=threads)
        self.thread = self._service.thread

    def close(self) -> None:
        """End it and leave no socket behind; a load that goes on is waited for."""
        self._service.close()

    def _serve(self, channel: wire.Channel) -> None:
        while True:
            channel.send(self._obeyed(*channel.receive()))

    def _obeyed(self, message: dict[str, Any], fd: int | None) -> dict[str, Any]:
        """Do what a message asks; return the answer."""
        start = time.perf_counter()
        try:
            if message["do"] == "weights":
                if fd is None:
                    raise TransportError("The weights came without their memory.")
                self._teacher.weights(WeightSegment.attach(fd))
                return {"said": "taken"}
            with self._turns:
                drift = self._loaded(message["version"])
            return {"said": "loaded", "seconds": time.perf_counter() - start, "drift": drift}
        except Exception as error:
            ours = isinstance(error, KDFlowLabError)
            name = type(error).__name__
            text = str(error) if ours else f"{name}: {error}"
            return {"said": "failed", "text": text, "kind": name if ours else "TransportError"}

    def _loaded(self, version: int) -> dict[str, float]:
        """Load a version, within the teacher's turn; one that slept sleeps again afterwards."""
        teacher, slept = self._teacher, self._teacher.asleep
        if slept:
            teacher.wake()
        drift = teacher.load(version)
        if slept:
            teacher.sleep()
        return drift
