"""Run directories as a worker writes them, without any training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.config import DistillConfig
from kdflow_lab.run import Run
from kdflow_lab.rundir import RunDirectory


def record(step: int, **changes: Any) -> dict[str, Any]:
    """One line of `metrics.jsonl`."""
    loss = 2.0 * math.exp(-step / 40) + 0.3
    return {
        "step": step,
        "loss": loss,
        "kd": 0.8 * loss,
        "ce": 1.2 * loss,
        "agreement": 1 - loss / 3,
        "tokens_per_s": 1000.0 + step,
        "step_s": 0.2,
        "teacher_wait_s": 0.05,
        "teacher_busy_s": 0.15,
    } | changes


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Make a run of so many steps; `state` says where it stands. A living one holds its lock."""
    directories: list[RunDirectory] = []

    def make(
        steps: int = 30,
        state: str = "finished",
        name: str = "my-run",
        parent: dict[str, Any] | None = None,
        lab: dict[str, Any] | None = None,
        **started: Any,
    ) -> Run:
        directory = RunDirectory(tmp_path / name)
        directories.append(directory)
        more = {"parent": parent, "lab": lab and {**lab, "dir": str(tmp_path)}}
        options = DistillConfig(steps=100).model_dump(mode="json", exclude={"data"})
        directory.create({**options, **{name: one for name, one in more.items() if one}})
        directory.event("starting", pid=os.getpid(), steps=100)
        if state != "starting":
            directory.lock()
            directory.event("started", **({"backend": "transformers"} | started))
        for step in range(1, steps + 1):
            directory.metrics(record(step))
        if state == "paused":
            directory.event("paused", step=steps + 1)
        elif state in ("finished", "stopped"):
            directory.event(state)
            directory.unlock()
        elif state == "failed":
            directory.event("failed", reason="The teacher <died> & left.")
            directory.unlock()
        return Run(directory.path)

    yield make
    for directory in directories:
        directory.unlock()
