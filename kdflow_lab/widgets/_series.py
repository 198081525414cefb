"""From the records of a run to the arrays that its figure draws: raw values, means, marks.

Everything is bounded: a run of a million steps gives as many points as one of a thousand, of the
raw values the smallest and largest of each stretch (no spike is lost), of the means every n-th.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.metrics import idle_shares
from kdflow_lab.widgets._timeline import Timeline, timeline

Floats = NDArray[np.float32]
Steps = NDArray[np.int32]

WHEN = "%Y-%m-%d %H:%M:%S"
LIVE_POINTS = 1000
"""Raw points a curve in a live figure."""
WINDOW_SHARE = 0.02
"""Steps of the running mean, as a share of the run."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity over the steps, as measured and as a running mean."""

    raw_steps: Steps
    raw: Floats
    mean_steps: Steps
    mean: Floats

    @property
    def empty(self) -> bool:
        """Whether the run measured none of it."""
        return not np.isfinite(self.raw).any()


@dataclass(frozen=True, slots=True)
class Mark:
    """A change of an option while the run went on, drawn on the loss curve."""

    step: int
    loss: float
    text: str
    """What was changed, such as `lr = 0.001`."""
    by: str = ""
    """Who asked for it."""
    time: float | None = None
    """When it was made, Unix seconds."""

    @property
    def who_and_when(self) -> str:
        """Such as `pid 4711, 2026-11-26 14:03:22`; empty if neither is known."""
        when = "" if self.time is None else time.strftime(WHEN, time.localtime(self.time))
        return ", ".join(part for part in (self.by, when) if part)

    @property
    def detail(self) -> str:
        """What was changed, by whom and when, in one line."""
        return f"{self.text} ({self.who_and_when})" if self.who_and_when else self.text


@dataclass(frozen=True, slots=True)
class Series:
    """All that the figure draws."""

    curves: dict[str, Curve]
    """Keys: those of `QUANTITIES`."""
    marks: list[Mark]
    window: int
    """Steps of the running mean."""
    timeline: Timeline
    """What students, teacher and rollout engine did with their time."""


def _idle(role: str, needs: str) -> Callable[[dict[str, Any]], float]:
    """How long a role waited, in percent of the step; NaN where `needs` was not measured."""

    def read(record: dict[str, Any]) -> float:
        if not record.get("step_s") or record.get(needs) is None:
            return float("nan")
        name = f"{role}_idle"
        share = record[name] if name in record else idle_shares(record)[name]  # of older runs
        return float("nan") if share is None else 100 * share

    return read


def _plain(key: str, scale: float = 1.0) -> Callable[[dict[str, Any]], float]:
    def read(record: dict[str, Any]) -> float:
        value = record.get(key)
        return float("nan") if value is None else scale * float(value)

    return read


QUANTITIES: dict[str, Callable[[dict[str, Any]], float]] = {
    "loss": _plain("loss"),
    "kd": _plain("kd"),
    "ce": _plain("ce"),
    "agreement": _plain("agreement", 100),
    "tokens_per_s": _plain("tokens_per_s"),
    "students_wait": _idle("students", "teacher_wait_s"),
    "teacher_idle": _idle("teacher", "teacher_busy_s"),
}
"""What is drawn, read from a record of `metrics.jsonl`; shares are percentages."""
OF_TEACHER = ("kd", "students_wait", "teacher_idle")
"""Quantities that mean nothing in a run without a teacher (SFT)."""


def series(
    records: list[dict[str, Any]],
    events: list[dict[str, Any]],
    *,
    steps: int | None = None,
    points: int = LIVE_POINTS,
) -> Series:
    """Build the arrays of a figure.

    Args:
        records: The metrics of the run in step order.
        events: Its events.
        steps: Steps that the run was asked for; the mean's window is a share of them.
        points: At most about this many raw points a curve, and half as many means.
    """
    index = np.array([record["step"] for record in records], dtype=np.int32)
    window = max(1, round(WINDOW_SHARE * max(steps or 0, len(records))))
    curves = {}
    alone = any(event["event"] == "started" and not event.get("backend") for event in events)
    for name, read in QUANTITIES.items():
        values = np.array([read(record) for record in records], dtype=np.float32)
        if alone and name in OF_TEACHER:
            values[:] = np.nan
        kept = extremes(values, points)
        mean = running_mean(values, window)
        every = np.unique(np.linspace(0, len(mean) - 1, min(len(mean), points // 2)).astype(int))
        curves[name] = Curve(index[kept], values[kept], index[every], mean[every])
    return Series(
        curves=curves,
        marks=_marks(index, records, events),
        window=window,
        timeline=timeline(records, has_teacher=not alone),
    )


def running_mean(values: Floats, window: int) -> Floats:
    """Mean of each value and those before it, `window` in all; NaNs are left out.

    Returns:
        Float32 of the same length; NaN where a whole window is.
    """
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0), dtype=np.float64)])
    count = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(0, np.arange(1, len(values) + 1) - window)
    sums, counts = total[1:] - total[first], count[1:] - count[first]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def extremes(values: Floats, points: int) -> NDArray[np.intp]:
    """Indices of the smallest and the largest value of each of `points / 2` equal stretches.

    Returns:
        Sorted indices, all of them if there are few enough, always with the first and the last.
    """
    count = len(values)
    if count <= points:
        return np.arange(count)
    width = -(-count // (points // 2))
    padded = np.full(-(-count // width) * width, np.nan, dtype=np.float32)
    padded[:count] = values
    stretches = padded.reshape(-1, width)
    start = np.arange(len(stretches)) * width
    low = np.where(np.isfinite(stretches), stretches, np.inf).argmin(axis=1) + start
    high = np.where(np.isfinite(stretches), stretches, -np.inf).argmax(axis=1) + start
    kept = np.unique(np.concatenate([low, high, [0, count - 1]]))
    return kept[kept < count]


def _marks(index: Steps, records: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[Mark]:
    """Where options were changed; a change before the first step has no place on the curve.

    What a resumed attempt makes again, because an earlier one had made it, is one change.
    """
    marks = []
    for event in events:
        if event["event"] != "set" or event.get("replayed") or not len(index):
            continue
        step = int(event.get("step", 0))
        nearest = records[int(np.abs(index - step).argmin())]
        loss = nearest.get("loss")
        marks.append(
            Mark(
                step,
                float("nan") if loss is None else float(loss),
                changes_in_words(event.get("changes", {})),
                by=str(event.get("by") or ""),
                time=event.get("time"),
            )
        )
    return marks


def changes_in_words(changes: dict[str, Any]) -> str:
    """Write changed options as `lr = 0.001, loss = reverse_kl`.

    That another loss begins with its own parameters goes without saying.
    """
    said = {name: value for name, value in changes.items() if (name, value) != ("loss_params", {})}
    return ", ".join(f"{name} = {value}" for name, value in (said or changes).items())
