"""Files in /dev/shm that a lab's engines made and cannot be trusted to remove.

SGLang leaves a semaphore and a load table there, in good order too. Such a process writes the names
into the lab's folder (`note`); whoever ends the lab removes them (`remove`), also when the process
was killed before it could. Semaphores cannot be found in a process: theirs get a name that says
whose they are (`semaphore_prefix`). Where joblib is installed and imported, its loky renames all
semaphores of `multiprocessing` after the process that makes them: a note has those beginnings, too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

SHARED = Path("/dev/shm")
_NOTES = "shm-{pid}"
_OURS = re.compile(r"(?:sgl_|sglang_|psm_)[\w.-]+|sem\.loky-\d+-")
"""What may be removed: a note is a file, and a file can say anything."""


def semaphore_prefix(pid: int) -> str:
    """Return how the semaphores of a process and its children are to begin, for `sem_open`."""
    return f"/kdflow-{pid}"


def seen(pids: Iterable[int]) -> set[str]:
    """Return the names of the files in /dev/shm that processes have mapped or open.

    And how the names of their semaphores begin under loky.
    """
    names = set()
    for pid in pids:
        names.add(f"sem.loky-{pid}-")
        paths: list[str] = []
        with contextlib.suppress(OSError):  # it ended
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            paths = [
                line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/dev/shm/" in line
            ]
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    paths.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        for path in paths:
            name = path.removesuffix(" (deleted)").removeprefix(f"{SHARED}/")
            if name != path and _OURS.fullmatch(name):
                names.add(name)
    return names


def note(folder: Path, pid: int, names: Iterable[str]) -> None:
    """Write down what belongs to a process.

    Args:
        folder: The lab's runtime folder.
        pid: The process; a second note replaces its first.
        names: Of files in /dev/shm.
    """
    file = folder / _NOTES.format(pid=pid)
    unfinished = file.with_name(f".{file.name}")
    with contextlib.suppress(OSError):  # the folder is gone, and the lab with it
        unfinished.write_text("\n".join(sorted(names)), encoding="utf-8")
        unfinished.replace(file)


def remove(folder: Path, pid: int | None = None) -> None:
    """Remove what was noted; the processes must have ended.

    Args:
        folder: The lab's runtime folder.
        pid: Only what belongs to this process; None for all.
    """
    for file in folder.glob(_NOTES.format(pid="*" if pid is None else pid)):
        owner = file.name.rpartition("-")[2]
        names = []
        with contextlib.suppress(OSError):
            names = [name for name in file.read_text().split() if _OURS.fullmatch(name)]
        prefix = f"sem.{semaphore_prefix(int(owner))[1:]}-" if owner.isdigit() else ""
        begins = [name for name in (prefix, *names) if name.startswith("sem.")]
        found = [path for begin in begins for path in SHARED.glob(f"{begin}*")]
        for path in [*map(SHARED.joinpath, names), *found]:
            with contextlib.suppress(OSError):  # another user's, or gone
                path.unlink()
        with contextlib.suppress(OSError):
            file.unlink()
