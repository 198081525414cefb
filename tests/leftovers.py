"""What a lab leaves behind: processes that carry its marker, files in /dev/shm, its folder."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

MARKER = "KDFLOW_LAB"


def shared_memory() -> set[str]:
    """Names of the files in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def left_in_shared_memory(before: set[str], *, seconds: float = 5) -> set[str]:
    """New files in /dev/shm that no living process holds; other programs hold theirs.

    Args:
        before: What `shared_memory` said.
        seconds: How long to wait for a file that is just made or removed.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = shared_memory() - before
        if left:
            left -= _held()
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _held() -> set[str]:
    """Names of the files in /dev/shm that a living process has open or mapped."""
    held = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            maps = (process / "maps").read_text().splitlines()
            held |= {Path(one).name for one in links if one.startswith("/dev/shm/")}
            held |= {line.rpartition("/")[2] for line in maps if " /dev/shm/" in line}
    return held


def processes_of(runtime_dir: Path) -> list[psutil.Process]:
    """Living processes whose environment names the lab's runtime folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_its = process.environ().get(MARKER) == str(runtime_dir)
            if is_its and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until_gone(runtime_dir: Path, *, seconds: float) -> list[str]:
    """Wait for the lab's processes and folder to go; say what is left after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        left = list(filter(None, map(_command, processes_of(runtime_dir))))
        left += [str(runtime_dir)] if runtime_dir.exists() else []
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _command(process: psutil.Process) -> str:
    """What a process runs; empty for one that ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:120] or process.name()
    return ""
