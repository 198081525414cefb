"""The doctor at a lab: its memory, its engines, and all of it in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.doctor import lab as doctor_lab
from kdflow_lab.doctor.lab import examine_lab
from kdflow_lab.jobs import TeacherInfo
from kdflow_lab.lab import Lab
from kdflow_lab.plan import predict


def _lab(tmp_path: Path, **options: Any) -> Lab:
    return Lab("zoo/teacher", "zoo/student", device="cpu", dir=str(tmp_path), **options)


def test_a_lab_that_is_down_is_looked_at_whole(tmp_path: Path) -> None:
    diagnosis = _lab(tmp_path).doctor()
    found = diagnosis.as_dict()
    assert diagnosis.fits, [one for one in diagnosis.findings if not one.fits]
    for name in ("disk", "cores", "memory of host", "heads", "same stops", "sockets", "dtype"):
        assert name in found
    assert "the lab is down" in found["engine parity"]["found"]
    assert diagnosis.tokenizers is not None


def test_memory_that_is_too_small_points_to_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict.devices, "free_host", lambda _: 3e8)
    finding = _lab(tmp_path).doctor().as_dict()["memory of host"]
    assert not finding["fits"]
    assert "lab.plan" in finding["advice"]


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        (None, "the reference itself"),
        ({"largest": 2e-5, "mean": 3e-6, "tokens": 124}, "2e-05 nats at most"),
    ],
)
def test_engines_that_are_up_say_how_far_they_drift(
    drift: dict[str, float] | None, words: str, tmp_path: Path
) -> None:
    backend = "transformers" if drift is None else "sglang"
    teacher = TeacherInfo("", backend, "", 128, "float32", 1, {}, drift=drift)
    lab = _lab(tmp_path)
    diagnosis = examine_lab(lab.config, tmp_path, lab._tokenizers(), status={"teacher": teacher})
    assert words in diagnosis.as_dict()["engine parity"]["found"]


def test_every_finding_that_does_not_fit_says_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("KDFLOW_RUNTIME", str(tmp_path / "open"))
    monkeypatch.setattr(predict.devices, "free_host", lambda _: 1e6)
    monkeypatch.setattr(doctor_lab.places.os, "sched_getaffinity", lambda _: {0})
    diagnosis = _lab(tmp_path, students=3).doctor()
    bad = [one for one in diagnosis.findings if not one.fits]
    assert {"runtime folder", "sockets", "cores", "memory of host"} <= {one.name for one in bad}
    assert all(one.advice for one in bad)
    assert "!! cores" in str(diagnosis)
