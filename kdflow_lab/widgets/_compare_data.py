"""From several runs to what their comparison draws: a look, curves and the fork of each.

Every curve is bounded, as in a run's own figure (`_series`); the more runs, the fewer points each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdflow_lab.run import Run
from kdflow_lab.widgets._lineage import Fork, ancestry, inherited
from kdflow_lab.widgets._series import (
    OF_TEACHER,
    QUANTITIES,
    WINDOW_SHARE,
    Curve,
    extremes,
    running_mean,
)

Reader = Callable[[dict[str, Any]], float]

POINTS = 1600
"""Raw points of one panel, shared by its runs, so that eight runs weigh about as much as four."""
MEAN_POINTS = 200
"""Points of a running mean: one on two pixels of a panel."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a run is drawn, in every panel and table."""

    colour: str
    dash: str
    """`solid`, `dash` or `dot`: neighbours differ for whoever sees no colours, too."""


LOOKS = (
    Look("#0072B2", "solid"),
    Look("#D55E00", "dash"),
    Look("#009E73", "dot"),
    Look("#E69F00", "solid"),
    Look("#56B4E9", "dash"),
    Look("#CC79A7", "dot"),
    Look("#8c8c8c", "solid"),
    Look("#F0E442", "dash"),
)
"""Okabe and Ito's colours, with grey for the black that dark pages swallow."""


@dataclass(frozen=True, slots=True)
class Axes:
    """One panel: one quantity of all runs."""

    quantity: str
    title: str
    unit: str
    log: bool = False
    """Whether a wide range is drawn on a logarithmic axis: what differs is near the end."""
    smooth: bool = True
    """Whether it is measured with noise, and shown as a running mean too."""
    points: bool = False
    """Whether it is measured now and then only, and each value shown as a point."""


CANDIDATES = (
    Axes("loss", "Loss", "nats / token", log=True),
    Axes("kd", "KD", "nats / token", log=True),
    Axes("agreement", "Agreement, top-1", "% of tokens"),
    Axes("held_out", "Held-out KL", "nats / token", log=True, smooth=False, points=True),
    Axes("lr", "Learning rate", "", smooth=False),
    Axes("tokens_per_s", "Speed", "tokens / s"),
)
"""Panels in the order of their use; the first `PANELS` that any run measured are drawn."""
PANELS = 4
UNMEASURED = ("loss", "kd", "agreement", "lr")
"""What is drawn, empty, while no run has measured anything."""


def _lr(record: dict[str, Any]) -> float:
    value = record.get("lr")
    return float("nan") if value is None else float(value)


READERS: dict[str, Reader] = {
    axes.quantity: _lr if axes.quantity == "lr" else QUANTITIES[axes.quantity]
    for axes in CANDIDATES
    if axes.quantity != "held_out"
}
"""How each quantity is read from a record of `metrics.jsonl`."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One run as the comparison shows it."""

    run: Run
    label: str
    """The run's name, with its folder where two have the same."""
    look: Look
    forks: list[Fork]
    """Its ancestry, nearest first; empty if it is no fork."""
    curves: dict[str, Curve]
    """Keys: the quantities of `CANDIDATES`."""

    @property
    def fork(self) -> Fork | None:
        """Where it left its parent."""
        return self.forks[0] if self.forks else None

    @property
    def legend(self) -> str:
        """The label, and what it was forked from."""
        return f"{self.label}  (from {self.fork})" if self.fork else self.label

    def mark(self, axes: Axes) -> tuple[int, float] | None:
        """Where the fork's mark stands in a panel: where its line begins; None if it has none."""
        curve = self.curves[axes.quantity]
        (finite,) = np.isfinite(curve.mean).nonzero()
        if not self.fork or axes.points or not len(finite):
            return None
        first = int(finite[0])
        return int(curve.mean_steps[first]), float(curve.mean[first])


@dataclass(frozen=True, slots=True)
class Compared:
    """All that a comparison draws."""

    runs: list[Drawn]
    panels: list[Axes]

    @property
    def last_step(self) -> int:
        """The end of the step axis."""
        curves = [curve for run in self.runs for curve in run.curves.values()]
        ends = [int(curve.mean_steps[-1]) for curve in curves if len(curve.mean_steps)]
        return max([1, *ends, *self.fork_steps])

    @property
    def fork_steps(self) -> list[int]:
        """The steps at which some run left its parent."""
        return sorted({run.fork.step for run in self.runs if run.fork})

    def decades(self, axes: Axes) -> float:
        """Decades that the means of a panel span; 0 if some are not positive, or none is there."""
        curves = [run.curves[axes.quantity] for run in self.runs]
        means = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in curves])
        return float(np.log10(means.max() / means.min())) if len(means) and means.min() > 0 else 0.0

    def logarithmic(self, axes: Axes) -> bool:
        """Whether a panel's axis is logarithmic: its means span more than a decade."""
        return axes.log and self.decades(axes) > 1

    @property
    def explanation(self) -> str:
        """What thin and bold lines and the mark mean."""
        return ", ".join(
            ["thin: each step, bold: running mean", *["● fork"] * bool(self.fork_steps)]
        )


def compared(runs: Sequence[Run]) -> Compared:
    """Read the runs as they are now."""
    known = {run.path: run for run in runs}
    points = min(400, POINTS // len(runs))
    longest = max(_length(run) for run in runs)
    drawn = [
        _drawn(run, label, look, known, window=_window(run, longest), points=points)
        for run, label, look in zip(runs, labels(runs), LOOKS, strict=False)
    ]
    measured = [
        axes for axes in CANDIDATES if not all(run.curves[axes.quantity].empty for run in drawn)
    ]
    unmeasured = [axes for axes in CANDIDATES if axes.quantity in UNMEASURED]
    return Compared(drawn, (measured or unmeasured)[:PANELS])


def labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names, with as much of their folders as tells those of the same name apart."""
    found = []
    for run in runs:
        others = [other.path for other in runs if other.path != run.path]
        parts = 1
        while any(other.parts[-parts:] == run.path.parts[-parts:] for other in others):
            parts += 1
        found.append("/".join(run.path.parts[-parts:]))
    return found


def _length(run: Run) -> int:
    """Steps asked for, or done if that was not said."""
    return max(run.steps or 0, len(run.records))


def _window(run: Run, longest: int) -> int:
    """Steps of a run's mean: that of the longest run, as equal noise compares best.

    A short run's is at most a tenth of it, which still shows its course, and never less than in its
    own figure.
    """
    common = min(WINDOW_SHARE * longest, len(run.records) / 10)
    return max(1, round(max(WINDOW_SHARE * _length(run), common)))


def _drawn(
    run: Run, label: str, look: Look, known: dict[Path, Run], *, window: int, points: int
) -> Drawn:
    """Read one run."""
    records, events = run.records, run.events
    forks = ancestry(run, known)
    before = inherited(forks, window)
    # as in `_series`: SFT records no teacher, and what stands there means nothing
    alone = any(event["event"] == "started" and not event.get("backend") for event in events)
    curves = {}
    for axes in CANDIDATES:
        if axes.points:
            curves[axes.quantity] = held_out(events)
        else:
            read = _nothing if alone and axes.quantity in OF_TEACHER else READERS[axes.quantity]
            width = window if axes.smooth else 1
            curves[axes.quantity] = _curve(records, before, read, width, points)
    return Drawn(run, label, look, forks, curves)


def _nothing(_: dict[str, Any]) -> float:
    return float("nan")


def _curve(
    records: list[dict[str, Any]],
    before: list[dict[str, Any]],
    read: Reader,
    window: int,
    points: int,
) -> Curve:
    """Build one curve.

    A fork's mean goes on from its parent's: its first value is the parent's last that it shares, so
    that one sees it branch off. Its raw values are its own.
    """
    values = np.array([read(record) for record in [*before, *records]], dtype=np.float32)
    index = np.array([record["step"] for record in [*before, *records]], dtype=np.int32)
    own = slice(len(before), None)
    kept = extremes(values[own], points)
    begin = max(0, len(before) - 1) if records else len(index)
    mean, steps = running_mean(values, window)[begin:], index[begin:]
    every = np.unique(np.linspace(0, len(mean) - 1, min(len(mean), MEAN_POINTS)).astype(int))
    return Curve(index[own][kept], values[own][kept], steps[every], mean[every])


def held_out(events: Sequence[dict[str, Any]]) -> Curve:
    """The KL to the teacher on held-out rows, from the run's `evaluated` events, in step order.

    There is one point a measurement (means and raw values are the same); of a step that was
    evaluated again the last counts.
    """
    found = {
        int(event["step"]): float(event["kl"])
        for event in events
        if event["event"] == "evaluated" and event.get("kl") is not None and "step" in event
    }
    steps = np.array(sorted(found), dtype=np.int32)
    values = np.array([found[step] for step in sorted(found)], dtype=np.float32)
    kept = extremes(values, MEAN_POINTS)
    return Curve(steps[kept], values[kept], steps[kept], values[kept])
