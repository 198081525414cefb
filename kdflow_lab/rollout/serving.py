"""How a rollout backend serves the students of one job: one thread, messages in their order.

    rank 0 -> rollout engine                        rollout engine -> rank 0
                                                    welcome   backend, dtype, and who it is
    weights   the segment, as a descriptor
    hold                                            held      idle: a buffer may be written
    load      this version lies in this buffer      loaded    and is what answers from now on
    generate  prompts in a parcel, and how          done      samples in a parcel, or
                                                    failed    why not

The socket is AF_UNIX SEQPACKET, the messages are those of `teacher.sglang.wire`. Everything is done
in order, so whoever is told `held` knows that nothing reads the weights, and whoever submits behind
a `load` knows which weights will answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.beats import Beats
from kdflow_lab.rollout import parcels
from kdflow_lab.rollout.sampling import Sampling, to_arrays
from kdflow_lab.teacher.service import Service
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport.segment import WeightSegment

if TYPE_CHECKING:
    from kdflow_lab.rollout.base import RolloutBackend

ROLE = "rollout"


class Ended(Exception):
    """Nobody waits for the answers any more."""


class Serving:
    """Serves one job from a thread of its own; made for it, then closed."""

    def __init__(self, backend: RolloutBackend, path: str, *, threads: int) -> None:
        """Listen, and begin to serve.

        Args:
            backend: Is called by this thread alone from now on.
            path: The socket; in a folder of this user's alone, where signs of life go, too.
            threads: CPU threads of the matrix products.

        Raises:
            TransportError: The socket cannot be made.
        """
        self._backend = backend
        self._beats = Beats(Path(path).parent, ROLE)
        self._service = Service(path, self._visited, name=ROLE, threads=threads)
        self._beats.__enter__()

    def close(self) -> None:
        """End it and leave no socket behind; answers that are being written are given up."""
        self._service.close()
        self._beats.__exit__()

    def _visited(self, channel: wire.Channel) -> None:
        """Serve one student until it goes, or gives its answers up."""
        with contextlib.suppress(Ended):
            self._serve(channel)

    def _serve(self, channel: wire.Channel) -> None:
        backend = self._backend
        channel.send(
            {
                "said": "welcome",
                "pid": os.getpid(),
                "backend": backend.backend,
                "why": backend.why,
                "dtype": str(backend.dtype).removeprefix("torch."),
                "copies": backend.copies,
            }
        )
        while True:
            self._beats.at("idle")
            message, fd = channel.receive()
            try:
                self._obey(channel, message, fd)
            except (Ended, wire.Gone):
                raise
            except Exception as error:
                # weights that were not taken would let later answers be written by older ones
                fatal = message["do"] != "generate"
                text = f"{type(error).__name__}: {error}"
                channel.send({"said": "failed", "text": text, "fatal": fatal})

    def _obey(self, channel: wire.Channel, message: dict[str, Any], fd: int | None) -> None:
        match message["do"]:
            case "weights":
                assert fd is not None
                self._backend.weights(WeightSegment.attach(fd))
            case "hold":
                channel.send({"said": "held"})
            case "load":
                self._backend.load(message["version"], message["buffer"])
                channel.send({"said": "loaded"})
            case "generate":
                self._generate(channel, message, fd)

    def _generate(self, channel: wire.Channel, message: dict[str, Any], fd: int | None) -> None:
        start = time.perf_counter()
        prompts = parcels.apart(parcels.unpack(message, fd))
        poll = select.poll()
        poll.register(channel, 0)  # POLLHUP is always told

        def on_progress(ended: int, total: int) -> None:
            self._beats.at(f"{ended} of {total} answers are written")
            if self._service.closing or poll.poll(0):
                raise Ended

        sampling = Sampling(**message["sampling"])
        samples = self._backend.generate(prompts, sampling, on_progress=on_progress)
        about, beside = parcels.pack(to_arrays(samples))
        try:
            seconds = time.perf_counter() - start
            channel.send({"said": "done", "seconds": seconds, **about}, fd=beside)
        finally:
            os.close(beside)
