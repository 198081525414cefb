"""Predicted against measured: the peak memory and the seconds of a step that `lab.plan` names.

Two pairs, each in a lab of its own: the zoo's models with their tasks and all defaults, and two
models of random weights, 110 M and 36 M parameters with a vocabulary of 32,000 (their rows are as
`_models.make_rows` makes them, batches of 16). Predictions are first guesses: nothing corrects
them. Measured is the largest sum of the proportional set sizes of all the lab's processes, sampled
five times a second, and of each process what `run.plan` says.

What bounds it: what malloc keeps, how pages of libraries are shared with other processes of the
machine, and that a micro-batch which comes later may be larger than the first ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _models
from _common import machine, print_result
from _memory import Memory

import kdflow_lab as kd

WITHIN = 0.15
SHAPES = {"teacher": (12, 768, 12, 2048), "student": (6, 512, 8, 1408)}
"""Layers, width, heads and width of the MLP."""


def make_pair(folder: Path) -> dict[str, str]:
    """Write the random pair; return the folders."""
    return {
        name: str(
            _models.save_model(folder / name, layers=layers, width=width, heads=heads, inner=inner)
        )
        for name, (layers, width, heads, inner) in SHAPES.items()
    }


def measure(models: dict[str, str], options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Plan a run, take it, and compare."""
    lab = kd.Lab(**models, dir=str(folder / "runs"))
    plan = lab.plan(**options)
    assert plan.learnt_runs == 0
    with Memory() as memory, memory.inherited(), lab:
        run = lab.distill(**options).wait()
    check = run.plan
    print(check)
    step = check.line("step")
    assert step is not None
    predicted, measured = plan.peak_bytes["host"], memory.peak_bytes
    return {
        "predicted_mb": round(predicted / 1e6),
        "measured_mb": round(measured / 1e6),
        "off": round(predicted / measured - 1, 3),
        "within": abs(predicted / measured - 1) <= WITHIN,
        "processes": {
            one.name: {"predicted_mb": round(one.predicted / 1e6), "off": round(one.ratio - 1, 3)}
            for one in check.lines
            if one.unit == "bytes"
        },
        "step_s": {"predicted": round(step.predicted, 4), "measured": round(step.measured, 4)},
        "corrected": {
            "predicted_mb": round(lab.plan(**options).peak_bytes["host"] / 1e6),
            "learnt_runs": lab.plan(**options).learnt_runs,
        },
    }


def main() -> None:
    """Measure both pairs and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("zoo", "random"))
    only = parser.parse_args().only
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kdflow-plan-") as name:
        folder = Path(name)
        if only != "random":
            models = {"teacher": "zoo/teacher", "student": "zoo/student"}
            found["zoo"] = measure(models, {"steps": 60}, folder / "zoo")
        if only != "zoo":
            rows = folder / "rows.jsonl"
            lines = [json.dumps(row) for row in _models.make_rows(96)]
            rows.write_text("\n".join(lines), encoding="utf-8")
            options = {"data": str(rows), "steps": 5, "batch_size": 16}
            found["random"] = measure(make_pair(folder), options, folder / "random")
    print_result(
        {
            "benchmark": "plan",
            **found,
            "wanted": {"off": f"within {WITHIN:.0%}, not corrected"},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
