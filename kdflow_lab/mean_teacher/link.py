"""Rank 0's connection to the teacher's engine, through which weights go there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdflow_lab import errors
from kdflow_lab.errors import TransportError
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport import sockets

if TYPE_CHECKING:
    from kdflow_lab.transport.segment import WeightSegment


class WeightLink:
    """Speaks with `kdflow_lab.teacher.weights.WeightServing`. For one thread at a time."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        """Connect.

        Args:
            path: Where the teacher listens (`StudentPlace.weights`).
            timeout_s: Seconds to wait for it.

        Raises:
            TransportError: Nobody listens.
        """
        try:
            connection = sockets.connect(path, timeout_s=timeout_s)
        except OSError as error:
            raise TransportError(
                f"The teacher takes no weights at {path}: {error.strerror or error}. Expected one "
                "that follows the student; look at its log."
            ) from None
        connection.settimeout(None)
        self._channel = wire.Channel(connection)

    def hand_on(self, segment: WeightSegment) -> None:
        """Give the teacher the memory where weights will lie.

        Raises:
            ModelError: It is of another model.
            ConfigError: The teacher runs in a way in which weights cannot be replaced.
            TransportError: The teacher has died.
        """
        self._ask({"do": "weights"}, fd=segment.fd)

    def load(self, version: int) -> dict[str, Any]:
        """Let the teacher compute with what lies there now, and wait until it does.

        Returns:
            `seconds` that it took there, and `drift`: what the canary measured.

        Raises:
            ModelError: The teacher did not take them, or its rows drifted.
            TransportError: The teacher has died.
        """
        return self._ask({"do": "load", "version": version})

    def close(self) -> None:
        """Leave; a second call does nothing."""
        self._channel.close()

    def _ask(self, message: dict[str, Any], *, fd: int | None = None) -> dict[str, Any]:
        # no timeout: a large model takes its time, and an engine that hangs is ended by the lab
        try:
            self._channel.send(message, fd=fd)
            answer, _ = self._channel.receive()
        except wire.Gone:
            raise TransportError(
                "The teacher died, or its engine was killed, while it was given new weights. "
                "lab.up() starts it again."
            ) from None
        if answer["said"] == "failed":
            text = f"The teacher did not take the student's weights: {answer['text']}"
            kind = getattr(errors, answer["kind"], TransportError)
            raise kind(text)
        return answer
