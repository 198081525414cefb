"""Records that become JSON lines."""

from __future__ import annotations

import json
import math
import platform

import pytest

from kdflow_lab.metrics import idle_shares, memory_bytes, rounded, versions


def test_rounded_keeps_nine_digits_and_what_is_no_float() -> None:
    record = {"loss": 1.23456789012, "tokens": 12345678901234, "name": "a", "tiny": 1.5e-300}
    assert rounded(record) == {
        "loss": 1.23456789,
        "tokens": 12345678901234,
        "name": "a",
        "tiny": 1.5e-300,
    }


def test_rounded_writes_null_for_what_json_does_not_know() -> None:
    record = rounded({"a": math.nan, "b": math.inf, "c": -math.inf, "d": None})
    assert json.dumps(record, allow_nan=False) == '{"a": null, "b": null, "c": null, "d": null}'


def test_idle_shares_by_hand() -> None:
    times = {"step_s": 0.5, "teacher_wait_s": 0.1, "teacher_busy_s": 0.4}
    assert idle_shares(times) == pytest.approx({"students_idle": 0.2, "teacher_idle": 0.2})
    on_policy = {"rollout_wait_s": 0.2, "rollout_s": 0.25, "sync_s": 0.05}
    assert idle_shares(times | on_policy) == pytest.approx(
        {"students_idle": 0.6, "teacher_idle": 0.2, "rollout_idle": 0.4}
    )


def test_idle_shares_are_shares_and_a_run_without_a_teacher_has_none_of_it() -> None:
    ahead = {"step_s": 0.1, "teacher_wait_s": 0.3, "teacher_busy_s": 0.5}
    assert idle_shares(ahead) == {"students_idle": 1.0, "teacher_idle": 0.0}
    alone = {"step_s": 0.1, "teacher_wait_s": 0.0, "teacher_busy_s": 0.0}
    assert idle_shares(alone, has_teacher=False) == {"students_idle": 0.0, "teacher_idle": None}


def test_versions_name_python_and_the_libraries() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {"torch", "transformers"} <= set(found)


def test_memory_is_that_of_this_process() -> None:
    before = memory_bytes()
    block = bytearray(64 << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    assert memory_bytes() - before > 32 << 20
