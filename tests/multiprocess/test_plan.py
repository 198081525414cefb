"""A plan against what a real lab takes, and what it learns from it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import process_watch
import pytest

import kdflow_lab as kd
from kdflow_lab.plan.learnt import FILE

WITHIN = 0.15
OPTIONS = {"data": "zoo/tasks", "rows": 600, "steps": 30}


def test_the_zoo_takes_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path))
    plan = lab.plan(**OPTIONS)
    assert plan.fits and plan.learnt_runs == 0
    mark = uuid.uuid4().hex
    watch = process_watch.MemoryWatch(mark)
    monkeypatch.setenv(process_watch.MARK, mark)
    watch.start()
    try:
        with lab:
            monkeypatch.delenv(process_watch.MARK)
            run = lab.distill(**OPTIONS).wait()
            parity = lab.doctor().as_dict()["engine parity"]
            while_up = lab.plan(**OPTIONS)
    finally:
        watch.stop()
    off = plan.peak_bytes["host"] / watch.peak_bytes - 1
    assert abs(off) < WITHIN, (off, watch.peak_processes, str(plan))
    assert "the reference itself" in parity["found"]

    # the plan that was made after the run had read it, unasked
    assert while_up.learnt_runs == 1
    assert os.stat(tmp_path / FILE).st_mode & 0o777 == 0o600
    check = run.plan
    memory, step = check.line("all processes"), check.line("step")
    assert memory is not None and step is not None
    assert while_up.peak_bytes["host"] == pytest.approx(memory.measured, rel=0.02)
    assert while_up.step_s == pytest.approx(step.measured, rel=0.05)
    assert memory.measured == pytest.approx(watch.peak_bytes, rel=WITHIN)
    assert "all processes" in str(check) and "all processes" in check._repr_html_()
    measured = [event for event in run.events if event["event"] == "memory"]
    assert set(measured[-1]["peak_bytes"]) == {
        *("supervisor", "controller", "teacher", "student 0")
    }
