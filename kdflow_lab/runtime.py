"""Where the living labs of this user are: one private folder each, below one private root.

A lab's folder holds its socket, its processes' meeting points and `lab.json`, which says what it
is. It goes when the lab ends. The run directories are elsewhere, and stay.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab import leftovers, processes
from kdflow_lab.errors import ClusterError, nearest

RECORD = "lab.json"
SOCKET = "lab.sock"
RUNS = "runs.json"
LOG = "supervisor.log"


@dataclass(frozen=True, slots=True)
class LabRecord:
    """One living lab.

    Attributes:
        folder: Its runtime folder.
        pid: Its supervisor's process.
        config: The fields of its `LabConfig`.
        version: Of kdflow-lab, which started it.
        started: Unix seconds.
    """

    folder: Path
    pid: int
    config: dict[str, Any]
    version: str
    started: float

    @property
    def name(self) -> str:
        """What `attach` calls it."""
        return self.folder.name

    @property
    def socket(self) -> str:
        """Where its supervisor listens."""
        return str(self.folder / SOCKET)

    def __str__(self) -> str:
        """One line for a list of labs."""
        config = self.config
        since = time.strftime("%H:%M", time.localtime(self.started))
        models = f"{config['teacher']} -> {config['student']}"
        return f"{self.name}  {models}  since {since}, runs in {config['dir']}"


def root() -> Path:
    """Return the folder that holds this user's labs, made if needed.

    `$KDFLOW_RUNTIME` names another one. Sockets lie in it, so its path must be short.

    Raises:
        ClusterError: It belongs to somebody else or is open to others.
    """
    default = Path(tempfile.gettempdir()) / f"kdflow-{os.getuid()}"
    path = Path(os.environ.get("KDFLOW_RUNTIME", default)).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ClusterError(
            f"The folder of the labs, {path}, cannot be made: {error.strerror}. Name another one "
            "in the environment variable KDFLOW_RUNTIME."
        ) from None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if not private or status.st_uid != os.getuid():
        raise ClusterError(
            f"The folder of the labs, {path}, is not this user's alone: expected a folder of mode "
            "0700. Remove it, or name another one in the environment variable KDFLOW_RUNTIME."
        )
    return path


def new_folder() -> Path:
    """Make the folder of a new lab, mode 0700."""
    return Path(tempfile.mkdtemp(prefix="lab-", dir=root()))


def write_record(folder: Path, config: dict[str, Any], version: str) -> None:
    """Say what the lab in `folder` is; called by its supervisor, whose process it names."""
    record = {
        "pid": os.getpid(),
        "born": processes.born(os.getpid()),
        "config": config,
        "version": version,
        "started": time.time(),
    }
    write_private(folder / RECORD, json.dumps(record))


def write_private(file: Path, text: str) -> None:
    """Write a file of mode 0600 that is either the old one or the new one, whole."""
    new = file.with_name(f".{file.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.replace(new, file)


def read_record(folder: Path) -> LabRecord | None:
    """Read a lab's record; None if its supervisor does not live (any more)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["born"] != processes.born(record["pid"]):
            return None
        return LabRecord(
            folder=folder,
            pid=record["pid"],
            config=record["config"],
            version=record["version"],
            started=record["started"],
        )
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of this version
        return None


STALE_S = 120.0
"""A folder without a living supervisor is no lab that is just starting when it is older."""


def living() -> list[LabRecord]:
    """List this user's living labs, oldest first; what dead ones left is removed."""
    found = []
    for folder in root().glob("lab-*"):
        record = read_record(folder)
        if record is not None:
            found.append(record)
        elif _age_s(folder) > STALE_S:
            processes.end(folder, grace_s=0)
            leftovers.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return sorted(found, key=lambda record: record.started)


def find(where: str | Path | None) -> LabRecord:
    """Find one living lab of this user; see `Lab.attach`."""
    labs = living()
    if not labs:
        raise ClusterError("No lab of this user is living. Start one with lab.up() or %kdflow up.")
    listed = "\n".join(f"  {lab}" for lab in labs)
    if where is None:
        if len(labs) > 1:
            raise ClusterError(f"There are {len(labs)} living labs; say which one:\n{listed}")
        return labs[0]
    path = Path(where).expanduser().absolute()
    found = [lab for lab in labs if str(where) == lab.name]
    found = found or [lab for lab in labs if Path(lab.config["dir"]) in (path, path.parent)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ClusterError(f"{len(found)} labs have their runs there; say which one:\n{listed}")
    hint = nearest(str(where), [lab.name for lab in labs])
    raise ClusterError(f"There is no living lab {str(where)!r}.{hint} There are:\n{listed}")


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
