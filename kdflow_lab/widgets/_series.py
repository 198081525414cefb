"""From the records of a run to the arrays that its figure draws: raw values, means, marks.

Everything is bounded: a run of a million steps gives as many points as one of a thousand, of the
raw values the smallest and largest of each stretch (no spike is lost), of the means every n-th.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Steps = NDArray[np.int32]

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


@dataclass(frozen=True, slots=True)
class Series:
    """All that the figure draws."""

    curves: dict[str, Curve]
    """Keys: those of `QUANTITIES`."""
    marks: list[Mark]
    window: int
    """Steps of the running mean."""


def _share(record: dict[str, Any], part: str, *, rest: bool = False) -> float:
    """A part of the step's time in percent, or what is left beside it; NaN if not measured."""
    step_s, part_s = record.get("step_s"), record.get(part)
    if not step_s or part_s is None:
        return float("nan")
    share = min(1.0, max(0.0, part_s / step_s))
    return 100 * (1 - share if rest else share)


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
    "students_wait": lambda record: _share(record, "teacher_wait_s"),
    "teacher_idle": lambda record: _share(record, "teacher_busy_s", rest=True),
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
    return Series(curves=curves, marks=_marks(index, records, events), window=window)


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
    """Where options were changed; a change before the first step has no place on the curve."""
    marks = []
    for event in events:
        if event["event"] != "set" or not len(index):
            continue
        step = int(event.get("step", 0))
        nearest = records[int(np.abs(index - step).argmin())]
        changes = ", ".join(f"{key} = {value}" for key, value in event.get("changes", {}).items())
        loss = nearest.get("loss")
        marks.append(Mark(step, float("nan") if loss is None else float(loss), changes))
    return marks
