"""What an engine keeps between jobs, and when it lets go of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from kdflow_lab import roles
from kdflow_lab.jobs import StudentPlace, SubjectJob, TrainJob

PLACE = StudentPlace(0, 1, "cpu", 1, None, "")


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    """An engine that has looked at a model."""
    roles._looked_at["a model"] = object()
    yield
    roles._looked_at.clear()


def test_models_are_forgotten_before_a_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(roles, "_start", lambda *_: held.append(len(roles._looked_at)))
    roles.start_training(TrainJob(PLACE, "run", "student", None, {}))
    assert held == [0]


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("cuda", 0)])
def test_a_gpu_is_left_to_other_jobs(
    device: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(job: SubjectJob, *_: Any) -> int:
        return len(roles._looked_at)

    for module, name in (("subject", "score"), ("subject", "write"), ("sandbox", "sandbox")):
        roles._looked_at["a model"] = object()
        monkeypatch.setattr(f"kdflow_lab.evaluate.{module}.{name}", look)
        place = dataclasses.replace(PLACE, device=device)
        job = SubjectJob(place, "model", False, "data", "test", None, 0, None)
        assert getattr(roles, name)(job) == kept
