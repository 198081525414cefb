"""Whose turn it is: the runs of a lab, one after another, and looks at models between them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from kdflow_lab import processes, runtime
from kdflow_lab.engines import Engines
from kdflow_lab.errors import KDFlowLabError, RunError
from kdflow_lab.jsonl import JsonlTail
from kdflow_lab.rundir import RunDirectory

HANDOVER_S = 10.0
"""How long a look at a model waits for engines that are about to be free."""
FREE_S = 30.0
"""How long a resumed run waits for its earlier attempt to leave the run directory."""


class RunQueue:
    """Gives the engines to one job at a time; a paused run leaves them when another job waits."""

    def __init__(self, folder: Path, engines: Engines) -> None:
        """Nothing runs before `start`.

        Args:
            folder: The lab's; the active and waiting runs are listed there for the guardian.
            engines: Whose turn is given.
        """
        self._file = folder / runtime.RUNS
        self._engines = engines
        self._active: RunDirectory | None = None
        self._attempt = 0  # of the active run
        self._waiting: deque[RunDirectory] = deque()
        self._parking = ""  # the run that was asked to leave the engines
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # held by whatever uses the engines
        self._starting = threading.Lock()
        self._closed = False
        self.runs: list[str] = []
        """Every run of this lab, oldest first."""

    def start(self) -> None:
        """Begin to take runs."""
        threading.Thread(target=self._work, name="runs", daemon=True).start()

    def add(self, directory: RunDirectory) -> None:
        """Put a run behind the others.

        Raises:
            RunError: It is active, here or elsewhere.
        """
        if any(directory.path == other.path for other in self._going()):
            raise RunError(f"{directory.path.name} is active already.")
        if directory.last_word().get("event") != "starting":
            raise RunError(f"{directory.path.name} is {directory.state()}: nobody began it anew.")
        me = os.getpid()
        with self._changed:
            if self._closed:
                raise RunError("The lab is ending. Start the run again; that starts a new lab.")
            directory.event("queued", pid=me, born=processes.born(me))
            self._waiting.append(directory)
            if str(directory.path) not in self.runs:
                self.runs.append(str(directory.path))
            self._write_down()
            self._changed.notify_all()

    def up(self, on_phase: Callable[[str], None]) -> None:
        """Start what is missing of the engines."""
        deadline = time.monotonic() + FREE_S
        while self._leaving() and time.monotonic() < deadline:
            time.sleep(0.05)  # engines that cannot leave a run are ended, and must be started again
        with self._starting:
            self._engines.up(on_phase)

    @property
    def busy(self) -> bool:
        """Whether a run is active or waits."""
        return bool(self._listed())

    def park(self) -> None:
        """Ask the active run to leave the engines if it is paused; it stays paused on disk."""
        active = self._active
        if active is None or active.last_word().get("event") != "paused":
            self._parking = ""
        elif self._parking != str(active.path):
            self._parking = str(active.path)
            active.command("park", by="supervisor")

    def tick(self) -> None:
        """Park what is in the way, and take back what was stopped before it began."""
        if self._waiting:
            self.park()
        for directory in list(self._waiting):
            if any(command.get("command") == "stop" for command in _commands(directory)):
                self._withdraw(directory)

    def _withdraw(self, directory: RunDirectory) -> None:
        with self._changed:
            if directory not in self._waiting:
                return
            self._waiting.remove(directory)
            self._write_down()
        directory.event("stopped", step=0, reason="It was stopped before it began.")

    def stop_all(self, reason: str) -> None:
        """Stop the active run with a checkpoint, and take the waiting ones back."""
        for directory in list(self._waiting):
            self._withdraw(directory)
        active = self._active
        if active is not None:
            active.event("warning", message=f"Stopping: {reason}.")
            active.command("stop", by="lease")

    def close(self) -> list[str]:
        """Take no more runs; return the paths of those that are active or wait."""
        with self._changed:
            self._closed = True
            return self._listed()

    @contextlib.contextmanager
    def turn(self, on_phase: Callable[[str], None]) -> Iterator[None]:
        """Take the engines for something short, and bring them up.

        Raises:
            RunError: A run is using them, or is waiting to.
        """
        # a run that has just ended still holds the engines for a moment; a paused one can leave
        deadline = time.monotonic() + HANDOVER_S
        while not self._turn.acquire(timeout=0.05):
            self.park()
            going = self._going()
            if self._parking:
                deadline = max(deadline, time.monotonic() + HANDOVER_S)
            if (going and not self._parking) or time.monotonic() > deadline:
                names = ", ".join(Path(path).name for path in self._listed()) or "another job"
                raise RunError(
                    f"The engines are busy with {names}. Wait for it (run.wait()), pause it "
                    "(run.pause()) or stop it (run.stop()) first."
                )
        try:
            self.up(on_phase)
            yield
        finally:
            self._turn.release()

    def _work(self) -> None:
        """Take one run after another."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
            with self._turn:
                with self._changed:
                    if not self._waiting or self._closed:
                        continue
                    directory = self._waiting.popleft()
                    self._active, self._parking = directory, ""
                    self._attempt = directory.attempts
                    self._write_down()
                try:
                    self._run(directory)
                finally:
                    with self._changed:
                        self._active = None
                        self._write_down()

    def _run(self, directory: RunDirectory) -> None:
        """Take a run through its attempt; whatever goes wrong is said in its directory."""
        try:
            self._wait_until_free(directory)
            self.up(lambda text: directory.event("phase", text=text))
            self._engines.train(directory)
            if directory.outcome(self._attempt) == "parked" and _wants_back(directory):
                directory.begin(directory.attempts + 1)
                self.add(directory)
        except Exception as error:
            if self._closed or directory.locked():
                return
            with contextlib.suppress(KDFlowLabError, OSError):
                if not directory.outcome(self._attempt):
                    directory.event("failed", reason=str(error), error=type(error).__name__)

    def _wait_until_free(self, directory: RunDirectory) -> None:
        """Wait for an earlier attempt, perhaps of another lab, to leave the run directory.

        Raises:
            RunError: It does not: another lab trains there.
        """
        deadline = time.monotonic() + FREE_S
        while directory.locked():
            if time.monotonic() > deadline:
                raise RunError("Another lab trains in this run directory.")
            time.sleep(0.05)

    def _leaving(self) -> bool:
        """Whether the active run has ended and is just leaving the engines."""
        active = self._active
        return active is not None and bool(active.outcome(self._attempt))

    def _going(self) -> list[RunDirectory]:
        """The active run, unless it is only leaving the engines, and those that wait."""
        active = self._active
        going = [] if active is None or self._leaving() else [active]
        return [*going, *self._waiting]

    def _listed(self) -> list[str]:
        with self._changed:  # a run that is just taken is in neither place without it
            active = [] if self._active is None else [self._active]
            return [str(directory.path) for directory in (*active, *self._waiting)]

    def _write_down(self) -> None:
        """List the active and waiting runs for the guardian."""
        with contextlib.suppress(OSError):
            runtime.write_private(self._file, json.dumps(self._listed()))


def _wants_back(directory: RunDirectory) -> bool:
    """Whether a run that has parked was told to resume when it heard no commands any more."""
    answered = {event.get("id") for event in directory.events()}
    given = _commands(directory)
    parks = [place for place, command in enumerate(given) if command.get("command") == "park"]
    later = given[parks[-1] + 1 :] if parks else []
    return any(one.get("command") == "resume" and one["id"] not in answered for one in later)


def _commands(directory: RunDirectory) -> list[dict]:
    """The commands that were given since the attempt began."""
    begun = [one for one in directory.events() if one["event"] == "starting"]
    start = begun[-1].get("control_from", 0) if begun else 0
    return JsonlTail(directory.control_file, position=start).read()
