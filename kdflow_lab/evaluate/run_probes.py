"""A run's probes over time, read from its directory alone: no torch, no tokenizer, no cluster."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from kdflow_lab.errors import RunError
from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.inspection import Inspection, check_quantity
from kdflow_lab.jsonl import JsonlTail
from kdflow_lab.rundir import ENDED, RunDirectory

KEPT = 16
"""Inspections that are held at most; a viewer goes back and forth among a few."""


class RunProbes:
    """The inspections of one run, of the same rows at step after step; more come while it trains.

    Cheap to ask again and again: of the events only new ones are read, and files only once. Threads
    may ask at the same time.
    """

    def __init__(self, directory: RunDirectory | str | Path, *, start: int | None = None) -> None:
        """Read the probes of a run directory; there may be none yet.

        Args:
            directory: The run's.
            start: The step that a viewer shows first; None shows the newest, whichever that is.

        Raises:
            RunError: There are probes, but none of step `start`.
        """
        is_open = isinstance(directory, RunDirectory)
        self.directory = directory if is_open else RunDirectory(directory)
        self._tail = JsonlTail(self.directory.events_file)
        self._written: set[int] = set()
        self._stale: set[int] = set()
        self._kept: OrderedDict[tuple[int, int], Inspection] = OrderedDict()
        self._lock = threading.RLock()
        self.start = start
        if start is not None and start not in self.steps:
            raise self._unknown(start)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.directory.path.name

    @property
    def live(self) -> bool:
        """Whether more probes may come: the run has not ended."""
        return self.directory.state() not in ENDED

    @property
    def steps(self) -> list[int]:
        """Steps that have probes, in order.

        Those that an attempt wrote beyond the checkpoint that a later one began from count no more,
        until that attempt writes them again.
        """
        with self._lock:
            for event in self._tail.read():
                if event["event"] == "probes":
                    self._written.add(event["step"])
                    self._stale.discard(event["step"])
                elif event["event"] == "started":
                    begun = event.get("from_step", 0)
                    self._stale |= {step for step in self._written if step > begun}
            files = self.directory.probes.glob("*.safetensors")
            found = {int(file.stem) for file in files if file.stem.isdigit()}
            return sorted(found - self._stale)

    @property
    def newest(self) -> int | None:
        """The last step that has probes; None if there are none yet."""
        steps = self.steps
        return steps[-1] if steps else None

    def at(self, step: int) -> Inspection:
        """Return the inspection of a step.

        Raises:
            RunError: There is none; the message says of which steps there are.
            DataError: The file is of another version of this package, or damaged.
        """
        path = self.directory.probes / f"{step}.safetensors"
        try:
            if step not in self.steps:
                raise FileNotFoundError
            written = path.stat().st_mtime_ns  # a step may be inspected twice
        except FileNotFoundError:
            raise self._unknown(step) from None
        key = (step, written)
        with self._lock:
            if key not in self._kept:
                found = probe_file.read_file(path)
                self._kept[key] = Inspection(
                    found.arrays, found.texts, name=self.name, step=step, note=note_of(found.arrays)
                )
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __repr__(self) -> str:
        """One line: which steps there are."""
        return f"<RunProbes {self.name}: steps {_listed(self.steps) or 'none'}>"

    def _unknown(self, step: int) -> RunError:
        there = f"There are: {_listed(self.steps)}." if self.steps else "It has none yet."
        return RunError(f"{self.name} has no probes of step {step}. {there}")


def checked_probes(path: Path, step: int | None, quantity: str | None) -> RunProbes:
    """Return the probes of a run directory for a viewer, its arguments checked.

    Raises:
        RunError: There are no probes of that step.
        ConfigError: There is no such quantity.
    """
    check_quantity(quantity)
    return RunProbes(path, start=step)


def note_of(arrays: probe_file.Arrays) -> str:
    """Say what is not known of the tokens, and why; an empty string where all is."""
    if "forward_kl" not in arrays:
        return "There was no teacher: this is the student alone."
    if "teacher_logprob" not in arrays:
        return (
            "The teacher reads other tokens: of what compares the two, only the forward KL is "
            "known, of response tokens, 0 at those without a counterpart."
        )
    return ""


def _listed(steps: list[int]) -> str:
    """Steps in a sentence, the middle ones left out where they are many."""
    shown = steps if len(steps) <= 12 else [*steps[:6], "...", *steps[-5:]]
    return ", ".join(map(str, shown)).replace(", ..., ", " … ")
