"""The run directory: the one truth about a run, for every process and for people.

Outward go `events.jsonl` and `metrics.jsonl`, inward goes `control.jsonl` (`kdflow_lab.jsonl`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdflow_lab import processes
from kdflow_lab.errors import KDFlowLabError, RunError
from kdflow_lab.jsonl import JsonlTail, append

SCHEMA = 1
STATE_OF_EVENT = {
    "starting": "starting",
    "queued": "starting",
    "started": "running",
    "paused": "paused",
    "parked": "paused",
    "resumed": "running",
    "stopping": "stopping",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
"""Which event puts a run into which state; other events leave it as it is."""
ENDED = ("finished", "stopped", "failed")
RESERVE_BYTES = 1 << 16
"""Kept free for a run's last words, should the disk be full."""

# struct flock of Linux on 64-bit machines: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqixxxx")
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37


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
        self.probes = self.path / "probes"
        self.skipped = self.path / "skipped"
        self._lock_file = self.path / ".lock"
        self._reserve_file = self.path / ".reserve"
        self._lock_fd: int | None = None
        self._events_tail = JsonlTail(self.events_file)
        self._events: list[dict[str, Any]] = []
        self._reading = threading.Lock()

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
        """Append an event with the time (Unix seconds).

        Raises:
            RunError: The disk is full. A `failed` event has room kept for it.
        """
        if name == "failed":
            self._reserve_file.unlink(missing_ok=True)
        append(self.events_file, {"event": name, "time": time.time(), **fields})

    def metrics(self, record: dict[str, Any]) -> None:
        """Append the metrics of one step.

        Raises:
            RunError: The disk is full.
        """
        append(self.metrics_file, record)

    def rollout(self, record: dict[str, Any]) -> None:
        """Append an answer that the student wrote.

        Raises:
            RunError: The disk is full.
        """
        append(self.path / "rollouts.jsonl", record)

    def command(self, name: str, **fields: Any) -> str:
        """Append a command for the run; return its id, which the acknowledging event repeats."""
        command_id = uuid.uuid4().hex[:12]
        append(
            self.control_file, {"id": command_id, "command": name, "time": time.time(), **fields}
        )
        return command_id

    def begin(self, attempt: int, **fields: Any) -> None:
        """Say that an attempt starts, and who sees to it until a worker holds the lock.

        Commands that were given before it are left behind.
        """
        size = self.control_file.stat().st_size if self.control_file.exists() else 0
        me = os.getpid()
        self.event(
            "starting",
            attempt=attempt,
            control_from=size,
            pid=me,
            born=processes.born(me),
            **fields,
        )

    def events(self) -> list[dict[str, Any]]:
        """Return all events; only what is new is read, for many ask for them many times."""
        with self._reading:
            self._events += self._events_tail.read()
            return list(self._events)

    @property
    def attempts(self) -> int:
        """How often the run was started; a resume is another attempt."""
        return sum(event["event"] == "starting" for event in self.events())

    def outcome(self, attempt: int) -> str:
        """Tell how an attempt came to its end; empty while it has not, or never began.

        Returns:
            `finished`, `stopped`, `failed` or `parked`.
        """
        begun = 0
        for event in self.events():
            begun += event["event"] == "starting"
            if begun == attempt and event["event"] in (*ENDED, "parked"):
                return event["event"]
        return ""

    def last_word(self) -> dict[str, Any]:
        """Return the newest event that changed the run's state; empty if there is none."""
        return _last_word(self.events())[1]

    def said(self) -> str:
        """Tell the state that the events say, whether or not anybody is alive to keep it."""
        return _last_word(self.events())[0]

    def state(self) -> str:
        """Tell the state of the run from its events and its lock.

        A run that says it is alive died without a word, and has `failed`, when nobody holds its
        lock and the process that sees to it (the starting kernel, then the lab's supervisor, which
        would say why) is gone. A parked one is `paused` and needs nobody.
        """
        events = self.events()
        state, word = _last_word(events)
        if state in ENDED or word.get("event") == "parked" or self.locked():
            return state
        handed = [event for event in events if event["event"] in ("starting", "queued")]
        keeper = handed[-1] if handed else {}
        if (state == "starting" or keeper.get("event") == "queued") and _is_alive(keeper):
            return state
        # the last event may have been written between our reading and our look at the lock
        state, word = _last_word(self.events())
        return state if state in ENDED or word.get("event") == "parked" else "failed"

    def steps_asked(self) -> int | None:
        """Return the steps that the run was asked for; None until the data was counted."""
        total = None
        for event in self.events():
            total = (event.get("changes") or {}).get("steps", event.get("steps", total))
        return total

    def checkpoint_steps(self) -> list[int]:
        """List the steps that have a whole checkpoint, in order."""
        return sorted(
            int(path.parent.name)
            for path in self.checkpoints.glob("[0-9]*/state.json")
            if path.parent.name.isdigit()
        )

    def lock(self) -> None:
        """Hold the directory until `unlock` or the end of this process.

        Raises:
            RunError: Another process trains in this directory, or it cannot be written.
        """
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(
                f"The run directory {self.path} cannot be written: {error.strerror}."
            ) from None
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        except OSError:
            os.close(fd)
            raise RunError(f"{self.path} is locked: another process is training in it.") from None
        self._lock_fd = fd
        with contextlib.suppress(OSError), self._reserve_file.open("wb") as reserve:
            os.posix_fallocate(reserve.fileno(), 0, RESERVE_BYTES)

    def unlock(self) -> None:
        """Give the directory free."""
        if self._lock_fd is not None:
            self._reserve_file.unlink(missing_ok=True)
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


def _last_word(events: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The state that events lead to, and the event that did it."""
    state, word = "starting", {}
    for event in events:
        if event["event"] in STATE_OF_EVENT:
            state, word = STATE_OF_EVENT[event["event"]], event
    return state, word


def _is_alive(word: dict[str, Any]) -> bool:
    """Whether the process that an event names still lives."""
    if "pid" not in word:
        return not word  # nobody has begun yet
    born = processes.born(word["pid"])
    return born is not None and word.get("born", born) == born


def fail_runs(paths: list[str], reason: str, *, lost: list[str] | None = None) -> None:
    """Say in every run directory that its lab has ended, unless the run has ended before."""
    for path in paths:
        directory = RunDirectory(path)
        with contextlib.suppress(KDFlowLabError, OSError):
            if directory.last_word().get("event") in (*ENDED, "parked"):
                continue
            if lost:
                directory.event("worker_lost", roles=lost)
            directory.event("failed", reason=reason)


def list_runs(folder: str | Path) -> Iterator[RunDirectory]:
    """Yield the run directories in `folder`, oldest first."""
    root = Path(folder).expanduser()
    found = [path.parent for path in root.glob("*/config.yaml")] if root.is_dir() else []
    for path in sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime):
        yield RunDirectory(path)
