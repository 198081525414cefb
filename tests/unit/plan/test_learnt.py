"""What earlier runs taught: kept privately, robust against whatever the file has become."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.plan import learnt

KEY = "cpu transformers"


def _run(teacher: float, time: float, key: str = KEY) -> dict[str, Any]:
    return {"key": key, "memory": {"teacher": teacher}, "time": time}


def test_the_median_of_runs_corrects(tmp_path: Path) -> None:
    for number, (memory, time) in enumerate([(1.1, 2.0), (1.2, 2.2), (1.6, 0.9)]):
        learnt.remember(tmp_path, f"run-{number}", _run(memory, time))
    known = learnt.read(tmp_path, KEY)
    assert (known.memory("teacher"), known.time) == (1.2, 2.0)
    assert known.memory("student") == 1.0
    assert stat.S_IMODE((tmp_path / learnt.FILE).stat().st_mode) == 0o600


def test_a_run_counts_once_and_only_for_its_kind(tmp_path: Path) -> None:
    learnt.remember(tmp_path, "run", _run(1.1, 1.0))
    learnt.remember(tmp_path, "run", _run(1.3, 1.0))
    learnt.remember(tmp_path, "other", _run(4.0, 4.0, key="cuda sglang"))
    known = learnt.read(tmp_path, KEY)
    assert list(known.runs) == ["run"]
    assert known.memory("teacher") == 1.3
    assert learnt.all_names(tmp_path) == ["run", "other"]


def test_the_newest_runs_count(tmp_path: Path) -> None:
    for number in range(learnt.NEWEST):
        learnt.remember(tmp_path, f"old-{number}", _run(2.0, 2.0))
    for number in range(learnt.NEWEST):
        learnt.remember(tmp_path, f"new-{number}", _run(1.0, 1.0))
    assert learnt.read(tmp_path, KEY).memory("teacher") == 1.0


@pytest.mark.parametrize(
    "text", ["", '{"schema": 1, "runs": {"a"', "[]", "null", '{"schema": 9, "runs": {}}', "\x00"]
)
def test_a_torn_file_is_said_and_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / learnt.FILE).write_text(text)
    known = learnt.read(tmp_path, KEY)
    assert not known.runs
    assert "what it had learnt is lost" in known.note
    assert (known.memory("teacher"), known.time) == (1.0, 1.0)
    learnt.remember(tmp_path, "run", _run(1.1, 1.0))
    assert learnt.read(tmp_path, KEY).memory("teacher") == 1.1


@pytest.mark.parametrize("ratio", [float("nan"), 1e9, 0.0, -1, "1.5", True, None, [1.2]])
def test_ratios_that_cannot_be_are_left_out(ratio: Any, tmp_path: Path) -> None:
    runs = {"a": {"key": KEY, "memory": {"teacher": ratio}, "time": ratio}}
    (tmp_path / learnt.FILE).write_text(json.dumps({"schema": 1, "runs": runs}))
    known = learnt.read(tmp_path, KEY)
    assert (known.memory("teacher"), known.time) == (1.0, 1.0)


def test_no_file_is_a_first_guess(tmp_path: Path) -> None:
    known = learnt.read(tmp_path, KEY)
    assert (known.runs, known.note) == ({}, "")
