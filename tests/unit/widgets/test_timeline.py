"""Who waits for whom, from planted times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.widgets.conftest import record

from kdflow_lab.widgets._timeline import (
    BINS,
    PHASES,
    RECENT_STEPS,
    ROLES,
    WARM_UP,
    idle,
    phase_words,
    seconds,
    shares,
    timeline,
    words,
)

TIMES = {
    "step_s": 1.0,
    "teacher_wait_s": 0.2,
    "teacher_busy_s": 0.3,
    "rollout_s": 0.4,
    "rollout_wait_s": 0.35,
    "sync_s": 0.05,
}


def test_what_every_role_did_by_hand():
    found = shares([TIMES, TIMES])
    assert found["students"] == pytest.approx(
        {"works": 0.4, "weights": 0.05, "for_teacher": 0.2, "for_answers": 0.35}
    )
    assert found["teacher"] == pytest.approx({"works": 0.3, "for_students": 0.7})
    assert found["rollout"] == pytest.approx({"works": 0.4, "weights": 0.05, "for_students": 0.55})
    assert [idle(found[role]) for role in ROLES] == pytest.approx([0.55, 0.7, 0.55])


def test_a_long_step_counts_for_more():
    long = record(1, step_s=3.0, teacher_wait_s=3.0)
    short = record(2, step_s=1.0, teacher_wait_s=0.0)
    assert idle(shares([long, short])["students"]) == pytest.approx(0.75)


def test_phases_in_seconds_by_hand():
    found = seconds([TIMES])
    assert found == pytest.approx(
        {"step": 1.0, "rollout": 0.4, "sync": 0.05, "teacher": 0.3, "student step": 0.4}
    )
    assert "rollout" not in seconds([record(1)])
    assert seconds([]) == {}


seconds_of = st.floats(0, 10)


@given(st.builds(dict, **{name: seconds_of for name in TIMES}))
def test_shares_add_up_to_one_whatever_was_measured(times):
    for found in shares([times]).values():
        assert sum(found.values()) == pytest.approx(1)
        assert all(-1e-9 <= share <= 1 + 1e-9 for share in found.values())
        assert set(found) <= set(PHASES)


def test_off_policy_there_is_no_rollout_and_without_a_teacher_none_waits():
    assert set(shares([record(1)])) == {"students", "teacher"}
    alone = shares([record(1, teacher_wait_s=0.1)], has_teacher=False)
    assert set(alone) == {"students"}
    assert idle(alone["students"]) == 0


def test_no_step_yet():
    line = timeline([])
    assert (line.stretches, line.recent, line.roles, line.steps) == ([], {}, [], 0)
    assert math.isnan(line.idle("teacher"))
    assert words(line) == phase_words(line) == ""


@pytest.mark.parametrize("steps", [1, BINS, BINS + 1, 1000, 4097])
def test_stretches_are_few_and_cover_every_step_once(steps):
    line = timeline([record(step) for step in range(1, steps + 1)])
    assert len(line.stretches) <= BINS
    edges = [(one.first, one.last) for one in line.stretches]
    assert [first for first, _ in edges] == [1, *(last + 1 for _, last in edges[:-1])]
    assert edges[-1][1] == steps


def test_the_last_steps_are_those_of_the_words():
    slow = [record(step, teacher_wait_s=0.2) for step in range(1, 101)]
    quick = [record(step, teacher_wait_s=0.0) for step in range(101, 101 + RECENT_STEPS)]
    line = timeline([*slow, *quick])
    assert line.steps == RECENT_STEPS
    assert line.idle("students") == 0
    assert words(line) == "students 0 % · teacher 25 %"
    assert phase_words(line).startswith("step 0.2 s · teacher 0.15 s · student step 0.2 s")


def test_the_first_steps_of_an_attempt_are_not_typical():
    first = [
        record(step, attempt=1, step_s=9.0, teacher_wait_s=9.0) for step in range(1, WARM_UP + 1)
    ]
    rest = [record(step, attempt=1, teacher_wait_s=0.0) for step in range(WARM_UP + 1, 20)]
    assert timeline([*first, *rest]).idle("students") == 0
    assert timeline(first).idle("students") == 1  # there is nothing else yet
    again = [record(step, attempt=2, step_s=9.0, teacher_wait_s=9.0) for step in (20, 21, 22)]
    later = [record(step, attempt=2, teacher_wait_s=0.1) for step in range(23, 33)]
    assert timeline([*first, *rest, *again, *later]).idle("students") == pytest.approx(0.5)
