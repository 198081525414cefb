"""Signs of life: each engine of a job touches a file of its own, so that one that hangs is named.

A rank that waits in a collective for another one, or for the teacher, cannot tell which of them
hangs. A thread of each engine beats twice a second as long as its process is not stopped; the
training says where it is.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

BEAT_S = 0.5


class Beats:
    """The sign of life of one engine; a context manager around its part in a job."""

    def __init__(self, folder: Path, role: str) -> None:
        """Beat as `role` in the job's folder, which all engines and the supervisor see."""
        self._folder = folder
        self._file = _file(folder, role)
        self._end = threading.Event()

    def __enter__(self) -> Beats:
        """Begin."""
        self.at("before the first step")
        threading.Thread(target=self._beat, name="beats", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; the file goes, for who has left cannot hang."""
        self._end.set()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def at(self, place: str) -> None:
        """Say where this engine is."""
        with contextlib.suppress(OSError):
            self._file.write_text(f"{os.getpid()} {place}")

    def where(self, roles: Iterable[str]) -> str:
        """Say where the others are, for the error of one that waited in vain."""
        return "; ".join(f"{role} {_place(self._folder, role)}" for role in roles)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._file)


def silent(folder: Path, roles: Iterable[str], *, seconds: float) -> list[str]:
    """Return the engines that began and have not beaten for `seconds`."""
    now = time.time()
    found = []
    for role in roles:
        with contextlib.suppress(OSError):
            if now - _file(folder, role).stat().st_mtime > seconds:
                found.append(role)
    return found


def _file(folder: Path, role: str) -> Path:
    return folder / f"beat-{role.replace(' ', '-')}"


def _place(folder: Path, role: str) -> str:
    try:
        pid, _, place = _file(folder, role).read_text().partition(" ")
    except OSError:
        return "has left"
    return f"(pid {pid}) {place}"
