"""The state of a run in text."""

from __future__ import annotations

import os

from kdflow_lab import processes
from kdflow_lab.widgets.report import report


def test_a_living_run_says_who_waits_what_it_takes_and_what_happened(make_run):
    run = make_run(state="running")
    me = os.getpid()
    run.directory.event("queued", pid=me, born=processes.born(me))
    run.directory.event("started", backend="transformers", ranks=[])
    run.directory.event("set", step=3, changes={"lr": 0.5}, by="me")
    text = report(run)
    summary, path, *lines = text.splitlines()
    assert summary.startswith("my-run: running · step 30/100")
    assert path == str(run.path)
    assert [line.split()[0] for line in lines] == ["idle", "a", "advice", "memory", "set"]
    assert lines[0].endswith("students 25 % · teacher 25 %")
    assert "supervisor" in lines[3]
    assert lines[4].startswith("set      step 3, ")
    assert lines[4].endswith("lr = 0.5 (by me)")


def test_of_a_run_that_was_never_timed_there_is_the_summary_alone(make_run):
    assert len(report(make_run(steps=0, state="stopped")).splitlines()) == 2
