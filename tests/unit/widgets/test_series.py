"""What the figure draws: bounded, with every spike, and honest about what was not measured."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from unit.widgets.conftest import record

from kdflow_lab.widgets._series import (
    OF_TEACHER,
    QUANTITIES,
    WHEN,
    extremes,
    running_mean,
    series,
)

STARTED = {"event": "started", "backend": "transformers"}


def _floats(*values: float | None) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


# -- means ----------------------------------------------------------------------------------------


def test_a_running_mean_by_hand():
    got = running_mean(_floats(1, 2, 3, 4, 5), 3)
    np.testing.assert_allclose(got, [1, 1.5, 2, 3, 4])


def test_a_running_mean_leaves_missing_values_out():
    got = running_mean(_floats(1, None, 3, None, None, None), 2)
    np.testing.assert_allclose(got, [1, 1, 3, 3, np.nan, np.nan])


def test_a_window_of_one_is_the_values():
    values = _floats(3, None, 1)
    np.testing.assert_array_equal(running_mean(values, 1), values)


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 70),
)
def test_a_running_mean_is_numpys_mean_of_the_window(values, window):
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(running_mean(values, window), expected, rtol=1e-3, atol=1e-3)


# -- thinning -------------------------------------------------------------------------------------


def test_few_values_are_all_kept():
    np.testing.assert_array_equal(extremes(_floats(*range(10)), 10), range(10))


@given(st.integers(0, 9_999), st.sampled_from([1e6, -1e6]))
def test_a_single_spike_is_never_lost(place, height):
    values = np.sin(np.arange(10_000, dtype=np.float32))
    values[place] = height
    kept = extremes(values, 400)
    assert place in kept
    assert len(kept) <= 402


@given(
    arrays.arrays(np.float32, st.integers(1, 500), elements=st.floats(allow_nan=True, width=32)),
    st.integers(2, 60),
)
def test_thinning_keeps_both_ends_the_order_and_the_extremes(values, points):
    kept = extremes(values, points)
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= max(points, 2) + 2
    finite = values[np.isfinite(values)]
    if len(finite):
        assert finite.min() in values[kept]
        assert finite.max() in values[kept]


def test_a_million_steps_give_as_many_points_as_a_thousand():
    records = [record(step) for step in range(1, 20_001)]
    curve = series(records, [STARTED], points=1000).curves["loss"]
    assert len(curve.raw) <= 1002
    assert len(curve.mean) <= 500
    assert curve.raw_steps[[0, -1]].tolist() == [1, 20_000]
    assert curve.mean_steps[[0, -1]].tolist() == [1, 20_000]


# -- the quantities -------------------------------------------------------------------------------


def _last(records: list[dict[str, Any]], **options: Any) -> dict[str, float]:
    data = series(records, options.pop("events", [STARTED]), **options)
    return {name: float(curve.raw[-1]) for name, curve in data.curves.items()}


def test_shares_are_percentages_of_the_step():
    last = _last([record(1, agreement=0.25, step_s=0.4, teacher_wait_s=0.1, teacher_busy_s=0.3)])
    assert last["agreement"] == pytest.approx(25)
    assert last["students_wait"] == pytest.approx(25)
    assert last["teacher_idle"] == pytest.approx(25)


def test_shares_stay_between_0_and_100():
    """The teacher works ahead, so that in one step it may be busy for longer than the step took."""
    last = _last([record(1, step_s=0.1, teacher_wait_s=0.3, teacher_busy_s=0.5)])
    assert (last["students_wait"], last["teacher_idle"]) == (100, 0)


def test_students_also_wait_for_answers():
    times = {"step_s": 0.4, "teacher_wait_s": 0.1, "rollout_wait_s": 0.2, "rollout_s": 0.2}
    assert _last([record(1, **times)])["students_wait"] == pytest.approx(75)


def test_what_was_not_measured_is_missing_and_not_zero():
    missing = dict.fromkeys(("kd", "agreement", "teacher_wait_s", "teacher_busy_s"))
    last = _last([record(1, **missing)])
    assert np.isnan([last[name] for name in ("kd", "agreement", *OF_TEACHER)]).all()
    assert np.isfinite(last["loss"])


def test_a_run_without_a_teacher_has_no_teacher_lines():
    """SFT records waits of 0, which would read as an ever busy or ever idle teacher."""
    records = [record(step, kd=None, teacher_wait_s=0.0, teacher_busy_s=0.0) for step in (1, 2)]
    data = series(records, [{"event": "started", "backend": None}])
    assert {name for name, curve in data.curves.items() if curve.empty} >= set(OF_TEACHER)
    assert not data.curves["ce"].empty
    assert not series(records, [STARTED]).curves["students_wait"].empty


def test_the_mean_covers_a_fiftieth_of_the_run():
    records = [record(step) for step in range(1, 11)]
    assert series(records, [], steps=500).window == 10
    assert series(records, [], steps=None).window == 1
    assert series([record(s) for s in range(1, 301)], [], steps=200).window == 6


def test_no_step_yet():
    data = series([], [STARTED], steps=100)
    assert set(data.curves) == set(QUANTITIES)
    assert all(curve.empty and not len(curve.raw) for curve in data.curves.values())
    assert data.marks == []


# -- marks ----------------------------------------------------------------------------------------


def test_a_change_is_marked_on_the_loss_curve():
    records = [record(step, loss=float(step)) for step in (1, 2, 3, 7, 8)]
    changed = {"event": "set", "step": 6, "changes": {"lr": 1e-3, "loss": "reverse_kl"}}
    (mark,) = series(records, [STARTED, changed]).marks
    assert (mark.step, mark.loss, mark.text) == (6, 7.0, "lr = 0.001, loss = reverse_kl")


def test_a_mark_says_who_and_when():
    event = {"event": "set", "step": 1, "changes": {"lr": 1}, "by": "figure, pid 7", "time": 1.5e9}
    (mark,) = series([record(1)], [STARTED, event]).marks
    when = time.strftime(WHEN, time.localtime(1.5e9))
    assert mark.detail == f"lr = 1 (figure, pid 7, {when})"
    (mark,) = series(
        [record(1)], [STARTED, {"event": "set", "step": 1, "changes": {"lr": 1}}]
    ).marks
    assert mark.detail == "lr = 1"


def test_a_change_that_a_resumed_attempt_makes_again_is_one_change():
    made = {"event": "set", "step": 1, "changes": {"loss": "tvd", "loss_params": {}}}
    (mark,) = series([record(1)], [STARTED, made, made | {"replayed": True}]).marks
    assert mark.text == "loss = tvd"


def test_a_change_before_the_first_step_has_no_place():
    assert series([], [{"event": "set", "step": 1, "changes": {"lr": 1}}]).marks == []


def test_a_mark_on_a_step_without_a_loss_has_none():
    changed = {"event": "set", "step": 1, "changes": {"lr": 1}}
    (mark,) = series([record(1, loss=None)], [changed]).marks
    assert np.isnan(mark.loss)
