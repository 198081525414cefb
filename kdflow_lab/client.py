"""A kernel's side of a lab's supervisor: start it, find it, ask it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from kdflow_lab import processes, runtime
from kdflow_lab.config import LabConfig
from kdflow_lab.errors import ClusterError

START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 15.0


class SupervisorClient:
    """Talks to the supervisor of one lab; may be used by several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Connect to the lab in `folder` and stay attached until `detach` or this process's end.

        Raises:
            ClusterError: No supervisor answers there.
        """
        self.folder = folder
        self._pidfd = -1
        record = runtime.read_record(folder)
        if record is None:
            raise ClusterError(f"There is no living lab in {folder}.")
        self.record = record
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(record.pid)
        self._presence: Connection | None = None
        try:
            self._presence = self._open("attach", {"who": _who()})
            self._presence.recv()
        except (ClusterError, EOFError, ConnectionError):  # it is just ending
            self.detach()
            raise ClusterError(f"The lab in {folder} has just ended.") from None

    @classmethod
    def start(cls, config: LabConfig) -> SupervisorClient:
        """Start a supervisor for a new lab and attach to it.

        Raises:
            ClusterError: It did not come up; the message ends with what it said.
        """
        folder = runtime.new_folder()
        runtime.write_private(folder / "config.json", config.model_dump_json())
        log = folder / runtime.LOG
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kdflow_lab.supervisor", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # neither Ctrl-C nor the terminal's end reaches it
                env={**os.environ, processes.MARKER: str(folder)},
            )
        # Reaped when it ends; else it would stay a zombie of this process.
        threading.Thread(target=process.wait, daemon=True).start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while runtime.read_record(folder) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                process.kill()
                raise ClusterError(
                    "The lab's supervisor did not start. "
                    + (f"It said: {said[-1]}" if said else f"Look at {log}.")
                )
            time.sleep(0.01)
        return cls(folder)

    @property
    def alive(self) -> bool:
        """Whether the supervisor lives and is not just ending the lab."""
        listens = (self.folder / runtime.SOCKET).exists()
        return listens and self._pidfd >= 0 and not processes.ended([self._pidfd])

    def ask(
        self,
        request: str,
        *,
        on_phase: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        **arguments: Any,
    ) -> Any:
        """Ask the supervisor and wait for its answer.

        Args:
            request: A method of the supervisor's `_Requests`.
            on_phase: Called with what it does meanwhile.
            on_progress: Called with parts done and parts in all.
            **arguments: The request's.

        Raises:
            KDFlowLabError: What the supervisor raised.
            ClusterError: It does not live.
        """
        try:
            with self._open(request, arguments) as connection:
                while True:
                    kind, value = connection.recv()
                    if kind == "phase":
                        on_phase(value)
                    elif kind == "progress":
                        on_progress(*value)
                    elif kind == "error":
                        raise value
                    else:
                        return value
        except (EOFError, ConnectionError):
            raise ClusterError(
                "The lab has ended: its supervisor is gone. lab.up(), or %kdflow up, starts it."
            ) from None

    def close(self) -> None:
        """End the lab and wait until its processes are gone."""
        with contextlib.suppress(ClusterError):
            self.ask("close")
        if self._pidfd >= 0:
            processes.wait([self._pidfd], CLOSE_TIMEOUT_S)
        self.detach()

    def detach(self) -> None:
        """Leave the lab; it goes on while a run is active or somebody else is attached."""
        presence, self._presence = self._presence, None
        if presence is not None:
            presence.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _open(self, request: str, arguments: dict[str, Any]) -> Connection:
        try:
            connection = Client(str(self.folder / runtime.SOCKET), family="AF_UNIX")
            connection.send((request, arguments))
        except OSError as error:
            raise ClusterError(f"The lab's supervisor does not answer: {error.strerror}.") from None
        return connection


def _who() -> str:
    """Name this process for the lab's other users."""
    return f"pid {os.getpid()}"
