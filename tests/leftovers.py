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
        left = [" ".join(process.cmdline())[:120] for process in processes_of(runtime_dir)]
        left += [str(runtime_dir)] if runtime_dir.exists() else []
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
