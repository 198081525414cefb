"""One line of advice from planted times."""

from __future__ import annotations

from typing import Any

import pytest
from unit.widgets.conftest import record

from kdflow_lab.config import DistillConfig
from kdflow_lab.widgets._advice import LEAST_STEPS, advice

LAB = {"students": 2, "dp_size": 1}


def _advice(times: dict[str, float], steps: int = 20, **options: Any) -> str:
    """Advice on a run of equal steps of one second."""
    records = [record(step, step_s=1.0, **times) for step in range(1, steps + 1)]
    config = DistillConfig.parse(**options).model_dump() | {"lab": LAB}
    return advice(records, config)


def _times(wait: float, busy: float, **others: float) -> dict[str, float]:
    return {"teacher_wait_s": wait, "teacher_busy_s": busy, **others}


def test_teacher_bound():
    said = _advice(_times(0.62, 0.95))
    assert said.startswith(
        "Students idle 62 %: teacher-bound. Add a teacher replica (Lab(dp_size=2)"
    )


def test_student_bound():
    said = _advice(_times(0.02, 0.3))
    assert said.startswith("Teacher idle 70 %: student-bound. More students (Lab(students=3))")


def test_teacher_that_rests_is_not_called_idle():
    said = _advice(_times(0.0, 0.0, cached=1.0))
    assert said.startswith("The teacher rests: all its hidden states come from the cache.")


def test_both_wait_for_each_other_so_more_depth_helps():
    said = _advice(_times(0.4, 0.5), depth=3)
    assert said.startswith("Students idle 40 %, teacher idle 50 %: they wait for each other.")
    assert "larger depth than 3" in said


def test_depth_zero_is_named():
    said = _advice(_times(0.5, 0.5), depth=0)
    assert "depth=0 makes them and the teacher take turns. Fork with depth=2" in said


def test_turns_on_one_gpu_change_less_often():
    said = _advice(_times(0.5, 0.5), teacher_batches_per_phase=4)
    assert "teacher_batches_per_phase=8" in said


def test_strictly_on_policy_takes_turns():
    times = _times(0.1, 0.1, rollout_s=0.5, rollout_wait_s=0.55, sync_s=0.02)
    said = _advice(times, on_policy=True)
    assert said.startswith("Students wait 55 % for rollouts: strictly on-policy")
    assert "max_staleness=1" in said


def test_rollout_bound_in_spite_of_staleness():
    times = _times(0.1, 0.1, rollout_s=1.0, rollout_wait_s=0.4, sync_s=0.02)
    said = _advice(times, on_policy=True, max_staleness=1, max_new_tokens=64)
    assert said.startswith("Students wait 40 % for rollouts in spite of max_staleness=1")
    assert "max_new_tokens (64)" in said


def test_weights_that_take_long_go_over_less_often():
    times = _times(0.1, 0.2, rollout_s=0.2, rollout_wait_s=0.1, sync_s=0.3)
    said = _advice(times, on_policy=True)
    assert said.startswith("Handing weights over takes 30 % of the step.")
    options = {"sync_every": 2, "max_staleness": 1}  # what it recommends is a valid config …
    assert all(f"{name}={value}" in said for name, value in options.items())
    DistillConfig.parse(on_policy=True, **options)


def test_the_longest_wait_is_the_one_that_is_named():
    times = _times(0.4, 0.9, rollout_s=0.3, rollout_wait_s=0.3, sync_s=0.0)
    assert "teacher-bound" in _advice(times, on_policy=True)


def test_a_balanced_run_is_told_so():
    said = _advice(_times(0.1, 0.8))
    assert said == "Balanced: nobody waits long (idle: students 10 %, teacher 20 %)."


@pytest.mark.parametrize("steps", [0, 1, LEAST_STEPS - 1])
def test_too_little_to_judge_by(steps):
    assert _advice(_times(0.9, 0.9), steps=steps) == ""


def test_without_a_teacher_there_is_nobody_to_wait_for():
    assert _advice(_times(0.0, 0.0), algorithm="sft") == ""


def test_only_the_last_steps_count():
    slow = [record(step, step_s=1.0, **_times(0.9, 0.9)) for step in range(1, 200)]
    now = [record(step, step_s=1.0, **_times(0.0, 0.2)) for step in range(200, 260)]
    config = DistillConfig().model_dump()
    assert "teacher-bound" in advice(slow, config)
    assert "student-bound" in advice([*slow, *now], config)
