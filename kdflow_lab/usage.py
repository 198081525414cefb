"""What a lab's processes take at most, seen from its supervisor and written into the run's events.

Of a process its proportional set size counts (PSS: a page that n processes share counts 1/n in
each). The kernel keeps the peak of the resident set alone, so the peak is the PSS of now and what
the resident set has been larger: what comes and goes is a process's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.errors import RunError

if TYPE_CHECKING:
    from kdflow_lab.rundir import RunDirectory

LOOKS = (3, 12, 50)
"""Steps of an attempt after which the processes are measured: the first look is soon, the later
ones know larger micro-batches."""


class Usage:
    """Writes `memory` events into one run, after its first steps."""

    def __init__(self, directory: RunDirectory) -> None:
        """Watch a run; lines that its metrics have already are of earlier attempts."""
        self._directory = directory
        self._size = -1
        self._begun = self._lines()
        self._left = list(LOOKS)

    def look(self, roles: Mapping[str, int]) -> None:
        """Measure if it is due.

        Args:
            roles: Process ids of the engines, by role; this process is the supervisor.
        """
        if not self._left:
            return
        file = self._directory.metrics_file
        size = file.stat().st_size if file.exists() else 0
        if size == self._size:
            return
        self._size = size
        done = self._lines() - self._begun
        if done < self._left[0]:
            return
        self._left = [step for step in self._left if step > done]
        peaks = peak_by_role(os.getpid(), {pid: role for role, pid in roles.items()})
        with contextlib.suppress(RunError):  # the disk is full, and the run will say so itself
            self._directory.event("memory", after_steps=done, peak_bytes=peaks)

    def _lines(self) -> int:
        try:
            return self._directory.metrics_file.read_bytes().count(b"\n")
        except OSError:
            return 0


def peak_by_role(supervisor: int, known: Mapping[int, str]) -> dict[str, int]:
    """Add up the peaks of a supervisor and all below it.

    Args:
        supervisor: Its process id.
        known: Roles of the engines. What an engine started belongs to it, its nanny, too;
            `controller` is ipyparallel's; what else hangs on the supervisor is its own.

    Returns:
        Bytes by role.
    """
    import psutil

    sums: dict[str, int] = {}
    todo: list[tuple[psutil.Process, str]] = []
    with contextlib.suppress(psutil.Error):
        todo.append((psutil.Process(supervisor), "supervisor"))
    while todo:
        process, role = todo.pop()
        sums[role] = sums.get(role, 0) + (peak_bytes(process.pid) or 0)
        with contextlib.suppress(psutil.Error):
            for child in process.children():
                below = role if role in known.values() else _by_command(child) or role
                todo.append((child, known.get(child.pid, below)))
    return sums


def peak_bytes(pid: int) -> int | None:
    """Return the largest PSS that a process has had, about; None if it is gone."""
    pss = pss_bytes(pid)
    if pss is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return pss + max(0, _field(status, "VmHWM:") - _field(status, "VmRSS:"))
    return None


def pss_bytes(pid: int) -> int | None:
    """Return the proportional set size of a process; None if it is gone or not this user's."""
    with contextlib.suppress(OSError, ValueError):
        return _field(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines(), "Pss:")
    return None


def _field(lines: Iterable[str], name: str) -> int:
    """Bytes behind a name, which /proc gives in kB.

    Raises:
        ValueError: There is no such line.
    """
    for line in lines:
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise ValueError(name)


def _by_command(process: object) -> str | None:
    """`controller` for ipyparallel's own processes."""
    with contextlib.suppress(Exception):  # it is gone, or another user's
        command = " ".join(process.cmdline())  # type: ignore[attr-defined]
        if "ipyparallel.controller" in command:
            return "controller"
    return None
