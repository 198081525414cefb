"""A thread that serves one visitor after another at a socket: what serves weights and rollouts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport import sockets


class Service:
    """Listens for one job; made for it, then closed."""

    def __init__(
        self, path: str, serve: Callable[[wire.Channel], None], *, name: str, threads: int
    ) -> None:
        """Listen, and begin to serve.

        Args:
            path: The socket; in a folder of this user's alone.
            serve: Serves one visitor; it ends by returning or by `wire.Gone`. One that was cut off
                may come again.
            name: Of the thread.
            threads: CPU threads of its matrix products.

        Raises:
            TransportError: The socket cannot be made.
        """
        self._path, self._serve = path, serve
        self.closing = False
        """Whether what goes on is to be given up."""
        self._channel: wire.Channel | None = None
        self._lock = threading.Lock()  # around `_channel` and `closing`
        self._listener = sockets.listen(path, backlog=4)
        self.thread = threading.Thread(target=self._run, args=(threads,), name=name, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End it and leave no socket behind; what the visitor asked for last is waited for."""
        with self._lock:
            self.closing = True
            if self._channel is not None:
                # closing it is left to the thread that reads from it
                with socket.socket(fileno=os.dup(self._channel.fileno())) as same:
                    _shut(same)
        _shut(self._listener)  # wakes `accept`
        self.thread.join()
        self._listener.close()
        Path(self._path).unlink(missing_ok=True)

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while True:
            try:
                channel = wire.accept(self._listener)
            except OSError:
                return
            if channel is None:
                continue
            with self._lock:
                if self.closing:
                    channel.close()
                    return
                self._channel = channel
            with contextlib.suppress(wire.Gone):
                self._serve(channel)
            with self._lock:
                self._channel = None
                channel.close()


def _shut(connection: socket.socket) -> None:
    """Wake whoever waits for something to come from a socket: nothing will."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
