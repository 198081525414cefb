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
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.beats import Beats
from kdflow_lab.rollout import parcels
from kdflow_lab.rollout.sampling import Sampling, to_arrays
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport import sockets
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
        self._path = path
        self._closing = False
        self._channel: wire.Channel | None = None
        self._lock = threading.Lock()  # around `_channel` and `_closing`
        self._listener = sockets.listen(path, backlog=4)
        self._beats = Beats(Path(path).parent, ROLE)
        self._beats.__enter__()
        self._thread = threading.Thread(target=self._run, args=(threads,), name=ROLE, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it and leave no socket behind; answers that are being written are given up."""
        with self._lock:
            self._closing = True
            if self._channel is not None:
                # closing it is left to the thread that reads from it
                with socket.socket(fileno=os.dup(self._channel.fileno())) as same:
                    _shut(same)
        _shut(self._listener)  # wakes `accept`
        self._thread.join()
        self._listener.close()
        Path(self._path).unlink(missing_ok=True)
        self._beats.__exit__()

    def _run(self, threads: int) -> None:
        """Serve one student after another: one that was cut off may come again."""
        torch.set_num_threads(threads)
        while True:
            try:
                channel = wire.accept(self._listener)
            except OSError:
                return
            if channel is None:
                continue
            with self._lock:
                if self._closing:
                    channel.close()
                    return
                self._channel = channel
            with contextlib.suppress(wire.Gone, Ended):
                self._serve(channel)
            with self._lock:
                self._channel = None
                channel.close()

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
            if self._closing or poll.poll(0):
                raise Ended

        sampling = Sampling(**message["sampling"])
        samples = self._backend.generate(prompts, sampling, on_progress=on_progress)
        about, beside = parcels.pack(to_arrays(samples))
        try:
            seconds = time.perf_counter() - start
            channel.send({"said": "done", "seconds": seconds, **about}, fd=beside)
        finally:
            os.close(beside)


def _shut(connection: socket.socket) -> None:
    """Wake whoever waits for something to come from a socket: nothing will."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
