"""Predicted against measured: what a run of this machine says of its own plan, and what is learnt.

The supervisor of a lab measures its processes after a run's first steps (the `memory` event), and
`metrics.jsonl` has the seconds: so any kernel can compare a run, during it or later.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.errors import KDFlowLabError, RunError
from kdflow_lab.plan import learnt
from kdflow_lab.plan.make import read_basis
from kdflow_lab.rundir import RunDirectory, list_runs
from kdflow_lab.units import size

if TYPE_CHECKING:
    from kdflow_lab.plan.predict import Prediction

WARM_UP = 3
"""Steps that do not count in the seconds of a step, where there are more."""
MOST_NEW = 2
"""Runs that are compared unasked before a plan: each has its data read once more."""


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity.

    Attributes:
        name: What it is.
        predicted: Before the run, not corrected; bytes or seconds.
        measured: In the run.
        unit: `bytes` or `s`.
    """

    name: str
    predicted: float
    measured: float
    unit: str = "bytes"

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted if self.predicted else float("nan")

    def cells(self) -> tuple[str, str, str, str]:
        """Name, predicted, measured and by how much it is off."""
        if self.unit == "s":
            shown = [f"{value:.3g} s" for value in (self.predicted, self.measured)]
        else:
            shown = [size(value) for value in (self.predicted, self.measured)]
        return self.name, shown[0], shown[1], f"{self.ratio - 1:+.0%}"


@dataclass(frozen=True, slots=True)
class Check:
    """A run beside its plan; shows itself as a table.

    Attributes:
        run: Name of the run directory.
        lines: Memory by process and in all, and seconds of a step.
        prediction: What was predicted, without corrections.
    """

    run: str
    lines: tuple[Line, ...]
    prediction: Prediction

    def line(self, name: str) -> Line | None:
        """One of the lines, such as `all processes` or `step`; None if it was not measured."""
        return next((one for one in self.lines if one.name == name), None)

    def __str__(self) -> str:
        """The table as text."""
        rows = [("", "predicted", "measured", "off"), *(one.cells() for one in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[n]:>{widths[n]}}" for n in (1, 2, 3))
            for row in rows
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table as HTML."""
        body = "".join(
            "<tr>"
            + "".join(
                f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>"
                for tag, side, cell in zip(
                    ("th", "td", "td", "td"),
                    ("left", "right", "right", "right"),
                    one.cells(),
                    strict=True,
                )
            )
            + "</tr>"
            for one in self.lines
        )
        return (
            "<table><thead><tr><th></th><th>predicted</th><th>measured</th><th>off</th></tr>"
            f"</thead><tbody>{body}</tbody></table>"
        )


def compare(directory: RunDirectory) -> Check:
    """Plan a run once more from what stands in its directory, and compare it with what it took.

    The ratios are kept in its folder, so that the next plan is corrected by them.

    Args:
        directory: Of a run that has taken steps.

    Raises:
        RunError: It has taken no step yet.
        DataError: Its data is not there any more.
        ModelError: One of its models is not.
    """
    asked = directory.config()
    records = read_steps(directory)
    if not records:
        raise RunError(
            f"{directory.path.name} has taken no step yet: there is nothing to compare its plan "
            "with. Wait for the first one."
        )
    lab = LabConfig.parse(**LabConfig.fields_in(asked["lab"]))
    basis = read_basis(lab, DistillConfig.parse(**DistillConfig.fields_in(asked)))
    predicted = basis.predict()
    lines = _memory_lines(predicted, measured_memory(directory.events()))
    step_s = median(record["step_s"] for record in records)
    lines.append(Line("step", predicted.raw_step_s, step_s, "s"))
    check = Check(directory.path.name, tuple(lines), predicted)
    ratios: dict[str, Any] = {"key": basis.key, "memory": {}, "time": round(lines[-1].ratio, 4)}
    for line in lines:
        if line.unit == "bytes" and line.name != ALL:
            ratios["memory"].setdefault(line.name.partition(" ")[0], round(line.ratio, 4))
    with contextlib.suppress(OSError):  # a folder that cannot be written teaches nothing
        learnt.remember(directory.path.parent, directory.path.name, ratios)
    return check


ALL = "all processes"


def measured_memory(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Peak bytes by process, from the newest `memory` event; empty if there is none."""
    said = [event for event in events if event["event"] == "memory"]
    return {} if not said else {name: float(n) for name, n in said[-1]["peak_bytes"].items()}


def read_steps(directory: RunDirectory) -> list[dict[str, Any]]:
    """The steps whose seconds count: without the first ones, if there are enough."""
    from kdflow_lab.jsonl import JsonlTail

    records = [one for one in JsonlTail(directory.metrics_file).read() if one.get("step_s")]
    return records[WARM_UP:] if len(records) > 2 * WARM_UP else records[-WARM_UP:]


def _memory_lines(predicted: Prediction, measured: Mapping[str, float]) -> list[Line]:
    """Compare host memory, process by process, and together."""
    on_host = [one for one in predicted.raw if one.device == "host"]
    lines = [
        Line(one.name, one.total, measured[one.name]) for one in on_host if one.name in measured
    ]
    if lines and len(lines) == len(on_host):
        lines.append(Line(ALL, sum(one.total for one in on_host), sum(measured.values())))
    return lines


def learn_from(folder: Path) -> None:
    """Let the newest runs of a folder that were measured correct the next plan.

    What cannot be read teaches nothing; a plan does not fail for it.
    """
    try:
        known = set(learnt.all_names(folder))
        directories = [
            one
            for one in reversed(list(list_runs(folder)))
            if one.path.name not in known and measured_memory(one.events())
        ][:MOST_NEW]
    except OSError:
        return
    for directory in directories:
        with contextlib.suppress(KDFlowLabError, OSError, KeyError, ValueError):
            compare(directory)
