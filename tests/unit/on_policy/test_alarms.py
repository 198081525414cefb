"""Each alarm rings on a planted collapse, alone, and none does on healthy looks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from kdflow_lab.on_policy.alarms import KINDS, QUIET_STEPS, WINDOW, Alarms, Look, repeats

HEALTHY = Look(
    step=1,
    answers=[np.array([5, 9, 4, 7, 3], np.int32), np.array([8, 6, 3], np.int32)] * 4,
    finished=[True] * 8,
    kd=0.4,
    most=32,
    sampled=True,
    student_entropy=0.8,
    teacher_entropy=0.5,
    teacher_logprobs=np.array([-0.1, -0.5, -2.0, -12.0, -0.2, -0.3], np.float32),
    stop_logprobs=[-0.1, -0.4],
    uniform_entropy=math.log(1024),
)
LONG = [np.arange(10, 30, dtype=np.int32)] * 8
CUT = [np.arange(10, 42, dtype=np.int32)] * 8
LOOP = [np.array([1, 2, 3, 4] * 6, np.int32)] * 8
COLLAPSES: dict[str, dict[str, Any]] = {
    "never_stops": {"answers": CUT, "finished": [False] * 8, "stop_logprobs": []},
    "truncated": {"answers": CUT, "finished": [False] * 6 + [True] * 2},
    "length": {"answers": LONG},
    "repeated": {"answers": LOOP},
    "entropy_collapse": {"student_entropy": 0.01},
    "gibberish": {"teacher_logprobs": np.array([-14.0, -20.0, -1.0], np.float32)},
    "teacher_uniform": {"teacher_entropy": 6.5},
    "kl_rising": {"kd": 1.4},
    "stop_ids": {"stop_logprobs": [-15.0, -14.0]},
}
OF_CHANGE = ("length", "kl_rising")
ALSO = {
    "never_stops": {"truncated", "length"},
    "truncated": {"length"},
    "repeated": {"length"},
}
"""What else is true of a collapse, if it comes in the middle of a run."""


def _looks(first: int, count: int, **changes: Any) -> list[Look]:
    return [
        dataclasses.replace(HEALTHY, step=step, **changes) for step in range(first, first + count)
    ]


def _rung(alarms: Alarms, looks: list[Look]) -> list[tuple[int, str]]:
    return [(look.step, alarm.kind) for look in looks for alarm in alarms.saw(look)]


def test_every_kind_has_its_collapse_and_healthy_looks_ring_nothing() -> None:
    assert set(COLLAPSES) == set(KINDS)
    assert _rung(Alarms(), _looks(1, 3 * WINDOW)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_rings_where_the_run_collapses(kind: str) -> None:
    """In the middle of a run: all signs, those of a change as well."""
    alarms = Alarms()
    assert _rung(alarms, _looks(1, WINDOW)) == []
    rung = _rung(alarms, _looks(1 + WINDOW, WINDOW, **COLLAPSES[kind]))
    assert {kind} <= {name for _, name in rung} <= {kind} | ALSO.get(kind, set())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_CHANGE])
def test_it_rings_where_the_run_begins_collapsed(kind: str) -> None:
    """With the first whole window, not before."""
    rung = _rung(Alarms(), _looks(1, WINDOW, **COLLAPSES[kind]))
    assert (WINDOW, kind) in rung
    assert {step for step, _ in rung} == {WINDOW}


@pytest.mark.parametrize("kind", KINDS)
def test_one_odd_step_rings_nothing(kind: str) -> None:
    alarms = Alarms()
    odd = _looks(1 + WINDOW, 1, **COLLAPSES[kind])
    rung = _rung(alarms, [*_looks(1, WINDOW), *odd, *_looks(2 + WINDOW, WINDOW)])
    assert rung == []


def test_it_rings_again_only_after_a_while() -> None:
    rung = _rung(Alarms(), _looks(1, WINDOW + 2 * QUIET_STEPS, **COLLAPSES["teacher_uniform"]))
    assert [step for step, _ in rung] == [WINDOW, WINDOW + QUIET_STEPS, WINDOW + 2 * QUIET_STEPS]


def test_the_answer_that_shows_it_comes_along() -> None:
    alarms = Alarms()
    answers = [*HEALTHY.answers[:4], *LOOP[:4]]
    found = [alarm for look in _looks(1, WINDOW, answers=answers) for alarm in alarms.saw(look)]
    assert [alarm.kind for alarm in found] == ["repeated"]
    assert found[0].answer.tolist() == LOOP[0].tolist()
    assert "50% of the answers" in found[0].message


def test_numbers_are_in_the_message() -> None:
    alarms = Alarms()
    _rung(alarms, _looks(1, WINDOW))
    (found,) = [one for look in _looks(5, WINDOW, kd=1.4) for one in alarms.saw(look)][:1]
    assert "nats a token, up from 0.400" in found.message


def test_greedy_answers_have_no_entropy_to_lose() -> None:
    assert _rung(Alarms(), _looks(1, WINDOW, sampled=False, student_entropy=0.0)) == []


def test_a_teacher_that_is_sure_is_no_collapse_of_the_student() -> None:
    assert _rung(Alarms(), _looks(1, WINDOW, student_entropy=0.0, teacher_entropy=0.1)) == []


def test_few_answers_say_nothing() -> None:
    few = {"answers": CUT[:1], "finished": [False], "stop_logprobs": []}
    assert _rung(Alarms(), _looks(1, WINDOW, **few)) == []


def test_a_loss_that_is_not_finite_is_for_others_to_say() -> None:
    alarms = Alarms()
    _rung(alarms, _looks(1, WINDOW))
    assert _rung(alarms, _looks(1 + WINDOW, WINDOW, kd=math.nan)) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([1, 2, 3, 4] * 6, True),
        ([7] * 20, True),
        ([1, 2] * 4, False),  # too short to say
        (list(range(30)), False),
        ([*range(100, 140), 1, 2, 3, 4, 1, 2, 3, 4], False),
        ([*range(100, 120), *[1, 2, 3, 4, 5] * 8], True),
    ],
)
def test_repeats(answer: list[int], expected: bool) -> None:
    assert repeats(np.array(answer, np.int32)) is expected
