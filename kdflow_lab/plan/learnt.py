"""What earlier runs of a folder taught the plan: measured over predicted, by kind of process.

`<dir>/.plan.json` holds the ratios of each run that was compared, so that a prediction can be
corrected by the median of the newest ones. It may be lost or torn at any time: then the plan is a
first guess again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kdflow_lab.runtime import write_private

FILE = ".plan.json"
SCHEMA = 1
NEWEST = 8
"""Runs that count."""
BOUNDS = (0.2, 5.0)
"""A ratio outside of these says that something else was measured."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """Ratios of earlier runs.

    Attributes:
        runs: By run directory's name: `memory` by kind of process, and `time`.
        note: Why the file could not be used, in words; empty if it could.
    """

    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str = ""

    def memory(self, kind: str) -> float:
        """Measured over predicted bytes of a kind of process; 1 where nothing is known."""
        return _median(_number(run.get("memory", {}).get(kind)) for run in self._newest())

    @property
    def time(self) -> float:
        """Measured over predicted seconds of a step; 1 where nothing is known."""
        return _median(_number(run.get("time")) for run in self._newest())

    def _newest(self) -> list[Mapping[str, Any]]:
        return list(self.runs.values())[-NEWEST:]


def read(folder: Path, key: str) -> Learnt:
    """Read the ratios of a folder of runs.

    Args:
        folder: `Lab.dir`.
        key: What a run must have in common with the plan, such as `cpu transformers`.
    """
    file = folder / FILE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise ValueError(f"schema {said['schema']}")
        runs = {
            name: run
            for name, run in said["runs"].items()
            if isinstance(run, dict)
            and isinstance(run.get("memory", {}), dict)
            and run.get("key") == key
        }
    except FileNotFoundError:
        return Learnt()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Learnt(note=f"{file} cannot be read ({error}); what it had learnt is lost.")
    return Learnt(runs)


def remember(folder: Path, name: str, ratios: Mapping[str, Any]) -> None:
    """Keep the ratios of one run, mode 0600; the newest last.

    Args:
        folder: `Lab.dir`.
        name: Of the run directory.
        ratios: `key`, `memory` by kind of process, and `time`.
    """
    runs = _all(folder)
    runs.pop(name, None)
    runs[name] = dict(ratios)
    kept = dict(list(runs.items())[-4 * NEWEST :])
    write_private(folder / FILE, json.dumps({"schema": SCHEMA, "runs": kept}, indent=1))


def all_names(folder: Path) -> list[str]:
    """Names of the runs that were compared, on any device; empty if the file cannot be read."""
    return list(_all(folder))


def _all(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _number(value: Any) -> float | None:
    """A ratio that can be true, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if BOUNDS[0] <= value <= BOUNDS[1] else None


def _median(values: Any) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else 1.0
