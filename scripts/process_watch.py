"""Find, weigh and end the processes that one kernel brought into the world.

A process belongs to a kernel when it carries the kernel's mark in its environment (children
inherit it, also those that have left the process tree), or descends from one that does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil

MARK = "KDFLOW_PROCESS_MARK"
"""Name of the environment variable that carries the mark."""


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that belong to `mark`, zombies left out."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) != mark:
                continue
            for one in (process, *process.children(recursive=True)):
                if one.status() != psutil.STATUS_ZOMBIE:
                    found[one.pid] = one
    return list(found.values())


def pss_bytes(processes: list[psutil.Process]) -> int:
    """Return the memory that `processes` take together: the sum of their proportional set sizes.

    A page that several share counts once in the sum, shared by those who map it. Linux only.
    """
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):  # it ended meanwhile
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def describe(process: psutil.Process) -> str:
    """Return a process' id and the beginning of its command line."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:100]}"
    except psutil.Error:
        return str(process.pid)


def end(mark: str, *, grace_s: float) -> list[str]:
    """Wait `grace_s` for the processes of `mark` to go, then end them.

    Returns:
        A description of each one that had to be ended.
    """
    deadline = time.monotonic() + grace_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    told = [describe(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(left, timeout=2)
    for process in marked(mark):  # also what a dying one may have started
        with contextlib.suppress(psutil.Error):
            process.kill()
    return told


class MemoryWatch(threading.Thread):
    """Samples `pss_bytes` of the processes of some marks five times a second; keeps the peak."""

    def __init__(self, *marks: str, period_s: float = 0.2) -> None:
        """Prepare to watch `marks`; `start()` begins."""
        super().__init__(daemon=True)
        self.marks = marks
        self.period_s = period_s
        self.peak_bytes = 0
        self.peak_processes: list[str] = []
        self.num_samples = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._done.wait(self.period_s):
            processes = [process for mark in self.marks for process in marked(mark)]
            total = pss_bytes(processes)
            self.num_samples += 1
            if total > self.peak_bytes:
                self.peak_bytes = total
                self.peak_processes = [
                    f"{pss_bytes([process]) / 1e6:6.0f} MB  {describe(process)}"
                    for process in processes
                ]

    def stop(self) -> int:
        """End the watch and return the peak in bytes."""
        self._done.set()
        self.join()
        return self.peak_bytes
