"""A teacher that follows its student on real engines, beside a plain loop in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plain_self_distillation
import pytest
import run_audit
import torch
from faults import SMALL, events, fails_soon, same, send, state, training
from faults import whole as assert_whole

import kdflow_lab as kd
from kdflow_lab.errors import RunError

STEPS = 6
FOLLOWING: dict[str, Any] = {
    **SMALL,
    "teacher_update_every": 2,
    "teacher_ema": 0.5,
    "checkpoint_every": 3,  # not where the teacher is updated
    "eval_every": 3,
    "eval_rows": 8,
    "steps": STEPS,
}
MIRROR: dict[str, Any] = {
    **SMALL,
    "teacher_update_every": 1,
    "kd_ratio": 0.5,
    "steps": 4,
    "eval_every": 2,
    "eval_rows": 8,
}
"""The teacher is the student at every step, so they never differ while both change."""


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A teacher that is its own student, on two ranks."""
    folder = str(tmp_path_factory.mktemp("itself"))
    with kd.Lab("zoo/student", "zoo/student", students=2, threads=1, dir=folder) as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> plain_self_distillation.Reference:
    return plain_self_distillation.reference("zoo/student", FOLLOWING)


@pytest.fixture(scope="module")
def undisturbed(itself: kd.Lab) -> kd.Run:
    return itself.distill(**FOLLOWING).wait(60)


def _column(run: kd.Run, name: str) -> list[Any]:
    return [record[name] for record in run.records]


def _is_its_old_self(lab: kd.Lab) -> None:
    """Teacher and student of the lab are one model again, for an evaluation and for a run."""
    assert lab.evaluate("zoo/tasks", rows=4, generate=False).kl == 0.0
    run = lab.distill(**SMALL, steps=1).wait(60)
    assert _column(run, "kd") == [0.0]


def _equals(run: kd.Run, reference: plain_self_distillation.Reference) -> None:
    assert_whole(run)
    for name in ("loss", "kd", "ce"):
        assert _column(run, name) == pytest.approx(getattr(reference, name), rel=1e-5, abs=1e-5)
    assert _column(run, "teacher_version") == [0, 0, 2, 2, 4, 4]
    evaluated = {event["step"]: event["kl"] for event in events(run, "evaluated")}
    assert set(evaluated) == {0, 3, 6}
    for step in (3, 6):  # with the teacher as it is then, and not as it was when first asked
        assert evaluated[step] == pytest.approx(reference.held_out[step - 1], abs=1e-5)
    last = run_audit.tensors(run.path / "checkpoints" / str(STEPS))
    saved = {n.split("/")[-1]: one for n, one in last.items() if n.startswith("/teacher/")}
    assert "lm_head.weight" not in saved  # tied
    for name, one in saved.items():
        assert one.dtype == torch.float32
        theirs = reference.teacher[name]
        # Adam makes a whole step of any gradient: where one is nearly zero, its rounding shows
        off = (one - theirs).abs() > 1e-5 + 1e-4 * theirs.abs()
        assert off.sum() <= one.numel() / 10_000
        torch.testing.assert_close(one, theirs, rtol=1e-4, atol=5e-5)
    assert len(saved) == len(reference.teacher)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_plain_loop_comes_to_the_same(
    itself: kd.Lab,
    undisturbed: kd.Run,
    reference: plain_self_distillation.Reference,
    depth: int,
) -> None:
    run = undisturbed
    if depth != run.config["depth"]:
        run = itself.distill(**FOLLOWING, depth=depth).wait(60)
        same(run, undisturbed)
    _equals(run, reference)
    _is_its_old_self(itself)


def test_every_update_is_an_event(undisturbed: kd.Run) -> None:
    said = events(undisturbed, "teacher_updated")
    assert [(one["step"], one["version"], one["why"]) for one in said] == [
        (2, 2, "due"),
        (4, 4, "due"),
        (6, 6, "due"),
    ]
    size = sum(one.numel() for one in undisturbed.student().parameters()) * 4
    for one in said:
        assert one["bytes"] == size
        assert 0 < one["seconds"] < 5
        assert one["drift"]["largest"] < 1e-4


def test_one_rank_comes_to_the_same(
    tmp_path: Any, reference: plain_self_distillation.Reference
) -> None:
    with kd.Lab("zoo/student", "zoo/student", threads=1, dir=str(tmp_path)) as lab:
        _equals(lab.distill(**FOLLOWING, teacher_batches_per_phase=3).wait(60), reference)


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_teacher_that_is_the_student_never_differs(itself: kd.Lab, on_policy: bool) -> None:
    """Hidden rows and head come from the same weights: an old head would be far off."""
    more = {"on_policy": True, "max_new_tokens": 8} if on_policy else {}
    run = itself.distill(**MIRROR, **more).wait(60)
    assert_whole(run)
    assert max(_column(run, "kd")) < 1e-6
    # shares of micro-batches are summed; one token that differs would be 1e-2
    assert min(_column(run, "agreement")) == pytest.approx(1.0, abs=1e-6)
    assert len({*_column(run, "ce")}) == 4
    assert [event["kl"] < 1e-6 for event in events(run, "evaluated")] == [True] * 3
    if not on_policy:
        assert run.records[-1]["ce"] < run.records[0]["ce"] - 0.5
    _is_its_old_self(itself)


def test_a_lora_student_gives_its_teacher_the_merged_weights(itself: kd.Lab) -> None:
    run = itself.distill(**MIRROR, lora_r=8).wait(60)
    assert_whole(run)
    assert max(_column(run, "kd")) < 1e-6
    assert run.records[-1]["ce"] < run.records[0]["ce"] - 0.05

    with_head = {**MIRROR, "lora_r": 8, "lora_target_modules": ["all-linear", "lm_head"]}
    with pytest.raises(RunError, match="it has no place for an adapted one"):
        itself.distill(**with_head).wait(60)
    _is_its_old_self(itself)


def test_on_policy_one_step_stale_asks_for_nothing_across_an_update(itself: kd.Lab) -> None:
    # on-policy, the depth also decides into how many micro-batches a step is cut: not so here
    options = {
        **FOLLOWING,
        "on_policy": True,
        "max_new_tokens": 8,
        "kd_ratio": 0.5,
        "micro_batch_rows": 1,
    }
    runs = [itself.distill(**options, max_staleness=1, depth=depth).wait(60) for depth in (0, 2)]
    same(*runs)
    assert _column(runs[0], "teacher_version") == [0, 0, 2, 2, 4, 4]
    assert max(_column(runs[0], "staleness")) == 1


@pytest.mark.parametrize("role", ["student 1", "teacher"])
def test_a_killed_engine_costs_nothing(itself: kd.Lab, undisturbed: kd.Run, role: str) -> None:
    """The new teacher gets the average of the checkpoint before it serves."""
    run = training(itself, **{**FOLLOWING, "steps": 100_000}, at=4)
    send(itself, role)
    fails_soon(run, seconds=20)
    begins = run.checkpoints[-1]
    if role == "student 1":
        _is_its_old_self(itself)
    run.resume(steps=begins + 2).wait(60)
    (again,) = [one for one in events(run, "teacher_updated") if one["why"] == "resumed"]
    assert (again["step"], again["version"]) == (begins, begins // 2 * 2)
    assert_whole(run)
    straight = itself.distill(**{**FOLLOWING, "steps": begins + 2}).wait(60)
    same(run, straight)
    start = [record["loss"] for record in straight.records[:5]]
    assert start == _column(undisturbed, "loss")[:5]
    _is_its_old_self(itself)


def test_a_stopped_run_gives_the_teacher_back(itself: kd.Lab) -> None:
    run = training(itself, **{**FOLLOWING, "steps": 100_000}, at=3)
    run.stop()
    state(run, "stopped")
    _is_its_old_self(itself)


def test_a_fork_begins_to_follow_and_stops_following(itself: kd.Lab, undisturbed: kd.Run) -> None:
    """The average is the parent's; without one it begins with the teacher's own weights."""
    fork = undisturbed.fork(steps=8).wait(60)
    assert _column(fork, "teacher_version") == [6, 6]
    still = undisturbed.fork(steps=8, teacher_update_every=None, teacher_ema=0.0).wait(60)
    assert "teacher_version" not in still.records[0]
    assert still.records[0]["ce"] == fork.records[0]["ce"]
    assert still.records[0]["kd"] != fork.records[0]["kd"]
    later = still.fork(steps=11, teacher_update_every=2, teacher_ema=0.5).wait(60)
    assert _column(later, "teacher_version") == [0, 0, 10]


def test_two_models_that_are_not_one_are_refused(lab: kd.Lab) -> None:
    run = lab.distill(**FOLLOWING)
    with pytest.raises(RunError, match="hidden_size is 256 in the teacher and 128 in the student"):
        run.wait(60)
    assert_whole(lab.distill(**SMALL, steps=2).wait(60))
