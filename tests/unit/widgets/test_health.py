"""The foot of a run's figure: news newest first, memory now and then."""

from __future__ import annotations

import os

from kdflow_lab import processes
from kdflow_lab.widgets import health
from kdflow_lab.widgets._news import MOST, SHOWN_IDS, news
from kdflow_lab.widgets.health import RunHealth

ALARM = {
    "event": "alarm",
    "time": 0.0,
    "step": 12,
    "kind": "repeated",
    "message": "Half of the answers repeat themselves.",
    "ids": list(range(100)),
    "text": "<b> \u202ea",
}
SET = {"event": "set", "time": 1.0, "step": 13, "changes": {"lr": 0.1}, "by": "figure, pid 7"}


def test_news_are_newest_first_with_step_and_text():
    lost = {"event": "worker_lost", "time": 2.0, "roles": ["teacher"], "pids": [1]}
    quiet = [{"event": "phase", "text": "x"}, {"event": "checkpoint", "step": 1}]
    found = news([ALARM, *quiet, SET, SET | {"replayed": True}, lost])
    assert [(one["kind"], one["step"]) for one in found] == [
        ("worker lost", None),
        ("set", 13),
        ("alarm", 12),
    ]
    assert found[0]["text"] == "teacher"
    assert found[1]["text"] == "lr = 0.1 (by figure, pid 7)"
    assert found[2]["text"] == "repeated: Half of the answers repeat themselves."


def test_the_newest_evaluation_is_told():
    first = {"event": "evaluated", "step": 0, "rows": 8, "kl": 2.0, "agreement": 0.1, "time": 0.0}
    last = first | {"step": 5, "kl": 0.25, "exact_match": 0.5, "metrics": {"f": 0.75, "bad": None}}
    found = news([first, SET, last, ALARM])
    assert [one["kind"] for one in found] == ["alarm", "evaluated", "set"]
    assert (found[1]["step"], found[1]["text"]) == (
        5,
        "KL 0.25, agreement 10.0 %, exact match 50.0 %, f 0.75 (8 held-out rows)",
    )


def test_an_alarm_shows_the_tokens_and_nothing_in_them_is_invisible():
    (alarm,) = news([ALARM])
    assert alarm["tokens"] == "<b>␣\\u202ea"
    assert alarm["ids"].startswith("0 1 2 ")
    assert alarm["ids"].endswith(f" {SHOWN_IDS - 1} …")


def test_the_list_is_bounded():
    assert len(news([ALARM] * (MOST + 10))) == MOST


def test_memory_is_looked_at_every_two_seconds(monkeypatch):
    me = os.getpid()
    queued = [{"event": "queued", "pid": me, "born": processes.born(me)}]
    foot = RunHealth()
    foot.show([], queued)
    first = foot.memory
    assert first[0]["role"] == "supervisor"
    assert first[0]["bytes"] > 10_000_000
    assert foot.total.endswith(" in all")
    foot.show([], [])  # too soon to look again
    assert foot.memory == first
    monkeypatch.setattr(health, "EVERY_S", 0.0)
    foot.show(
        [{"memory_bytes": 2_000_000_000}], [{"event": "started", "device": "cuda", "ranks": []}]
    )
    assert foot.memory == []
    assert foot.total == "2.00 GB at most on a student's GPU"


def test_the_front_end_gets_all_traits_and_the_javascript():
    state = RunHealth().get_state()
    assert {"memory", "total", "news"} <= set(state)
    assert "kdflow-health" in state["_esm"]
