"""`make demo` with SGLang for its teacher: the quickstart, shortened by its environment."""

from __future__ import annotations

import json
from pathlib import Path

import demo
import faults
import pytest

import kdflow_lab as kd

SHORT = {"KDFLOW_PROMPTS": "256", "KDFLOW_STEPS": "40", "KDFLOW_ROWS": "40"}


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_the_quickstart_runs_with_an_sglang_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    code = demo.main(["--teacher-backend", "sglang", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "left behind" not in said
    results = json.loads((tmp_path / "quickstart.json").read_text())
    assert results["student_after"]["kl"] < results["student_before"]["kl"]
    assert results["teacher"]["kl"] < 1e-4  # SGLang's rows against transformers' own
    distilled, fine_tuned = kd.runs(tmp_path / "kdflow_runs")
    (started,) = faults.events(distilled, "started")
    assert started["backend"] == "sglang"
    assert started["engine_drift"]["largest"] < 1e-4
    assert faults.events(fine_tuned, "started")[0]["backend"] is None
