"""The run directory: the one truth about a run, for every process and for people.

Outward go `events.jsonl` and `metrics.jsonl`, inward goes `control.jsonl`. Each line is one JSON
object, appended by one `write` call to a file opened for appending, so that lines of several
processes never mix and everything announced is already on the disk's page cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdflow_lab.errors import RunError

SCHEMA = 1
STATE_OF_EVENT = {
    "starting": "starting",
    "started": "running",
    "paused": "paused",
    "resumed": "running",
    "stopping": "stopping",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
"""Which event puts a run into which state; other events leave it as it is."""
ENDED = ("finished", "stopped", "failed")

# struct flock of Linux on 64-bit machines: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqixxxx")
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37


class JsonlTail:
    """Reads the complete lines that were appended to a JSONL file since the last call."""

    def __init__(self, path: Path) -> None:
        """Start at the beginning of `path`, which need not exist yet."""
        self.path = path
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the new objects; a last line without its newline waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._position += end
        objects = []
        for line in data[:end].splitlines():
            try:
                objects.append(json.loads(line))
            except ValueError:  # torn by a machine that died; what follows is still good
                continue
        return objects


class RunDirectory:
    """Names, writes and reads the files of one run."""

    def __init__(self, path: str | Path) -> None:
        """Name the directory; nothing is created or read yet."""
        self.path = Path(path).expanduser().absolute()
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.control_file = self.path / "control.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self._lock_file = self.path / ".lock"
        self._lock_fd: int | None = None

    def create(self, config: dict[str, Any]) -> None:
        """Make the directory with its `config.yaml`.

        Raises:
            RunError: The directory exists already, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"The run directory {self.path} exists already. Give the run another name."
            ) from None
        except OSError as error:
            raise RunError(
                f"The run directory {self.path} cannot be made: {error.strerror}. "
                "Pass a writable folder as Lab(dir=…)."
            ) from None
        text = yaml.safe_dump({"schema": SCHEMA, **config}, sort_keys=False, allow_unicode=True)
        self.config_file.write_text(text, encoding="utf-8")

    def config(self) -> dict[str, Any]:
        """Read `config.yaml`."""
        try:
            return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.path} is not a run directory: it has no config.yaml. "
                "kd.runs(dir) lists the run directories of a folder."
            ) from None

    def event(self, name: str, **fields: Any) -> None:
        """Append an event with the time (Unix seconds)."""
        _append(self.events_file, {"event": name, "time": time.time(), **fields})

    def metrics(self, record: dict[str, Any]) -> None:
        """Append the metrics of one step."""
        _append(self.metrics_file, record)

    def command(self, name: str, **fields: Any) -> str:
        """Append a command for the run; return its id, which the acknowledging event repeats."""
        command_id = uuid.uuid4().hex[:12]
        _append(
            self.control_file, {"id": command_id, "command": name, "time": time.time(), **fields}
        )
        return command_id

    def events(self) -> list[dict[str, Any]]:
        """Read all events."""
        return JsonlTail(self.events_file).read()

    def state(self) -> str:
        """Tell the state of the run from its events and its lock.

        A run that says it is alive while nobody holds its lock died without a word: `failed`.
        """
        state, starter = "starting", None
        for event in self.events():
            state = STATE_OF_EVENT.get(event["event"], state)
            if event["event"] == "starting":
                starter = event.get("pid")
        if state == "starting":
            alive = starter is None or Path(f"/proc/{starter}").exists() or self.locked()
            return "starting" if alive else "failed"
        if state in ENDED or self.locked():
            return state
        # the last event may have been written between our reading and our look at the lock
        last = [STATE_OF_EVENT.get(event["event"]) for event in self.events()]
        ended = [state for state in last if state in ENDED]
        return ended[-1] if ended else "failed"

    def lock(self) -> None:
        """Hold the directory until `unlock` or the end of this process.

        Raises:
            RunError: Another process trains in this directory.
        """
        fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        except OSError:
            os.close(fd)
            raise RunError(f"{self.path} is locked: another process is training in it.") from None
        self._lock_fd = fd

    def unlock(self) -> None:
        """Give the directory free."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def locked(self) -> bool:
        """Tell whether any process holds the lock, without taking it even for a moment."""
        try:
            fd = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
            return _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK
        finally:
            os.close(fd)


def _append(path: Path, record: dict[str, Any]) -> None:
    """Append one line by one write, so that concurrent writers never interleave."""
    line = json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def list_runs(folder: str | Path) -> Iterator[RunDirectory]:
    """Yield the run directories in `folder`, oldest first."""
    root = Path(folder).expanduser()
    found = [path.parent for path in root.glob("*/config.yaml")] if root.is_dir() else []
    for path in sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime):
        yield RunDirectory(path)
