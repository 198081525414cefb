"""Seconds: operations by hand, and which of the two is waited for."""

from __future__ import annotations

import pytest
import torch

from kdflow_lab.config import DistillConfig
from kdflow_lab.plan.make import Basis
from kdflow_lab.plan.speed import decoder_flops, head_flops, matmul_flops, step_time
from kdflow_lab.plan.workload import workload


def test_operations_by_hand(basis: Basis) -> None:
    size = basis.setting.student
    tokens, length = 80, 20
    squares = 4 * length**2
    products = 2 * size.active * tokens
    attention = 4 * length * length * 2 * 2 * size.query * size.layers
    assert decoder_flops(size, tokens, squares) == products + attention
    teacher = basis.setting.teacher
    assert teacher is not None
    heads = 2 * 10 * 1024 * (3 * size.hidden + teacher.hidden)
    assert head_flops(basis.setting, 10, whole=True) == heads


def test_the_rate_is_measured_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    assert 1e8 < matmul_flops() < 1e13
    assert torch.get_num_threads() == before


def test_the_slower_hides_the_other_only_if_it_may_be_ahead(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    ahead = step_time(basis.setting, work, basis.config, 1)
    assert ahead.step_s == max(ahead.teacher_s, ahead.student_s)
    turns = step_time(basis.setting, work, DistillConfig(rows=300, steps=20, depth=0), 1)
    assert turns.step_s == pytest.approx(turns.teacher_s + turns.student_s)


def test_stale_answers_are_written_beside_the_training(basis: Basis) -> None:
    config = DistillConfig(on_policy=True, max_new_tokens=32, steps=4)
    work = workload(basis.lengths, config, 1)
    strict = step_time(basis.setting, work, config, 1)
    assert strict.rollout_s > 0
    stale = step_time(basis.setting, work, config.model_copy(update={"max_staleness": 1}), 1)
    assert stale.step_s < strict.step_s


def test_checkpointing_costs_a_forward_pass(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    again = DistillConfig(rows=300, steps=20, activation_checkpointing=True)
    plain = step_time(basis.setting, work, basis.config, 1)
    assert step_time(basis.setting, work, again, 1).student_s > plain.student_s


def test_rows_from_a_cache_leave_the_cores_to_the_student(basis: Basis) -> None:
    config = DistillConfig(rows=300, epochs=4, cache=True)
    work = workload(basis.lengths, config, 1)
    cached = step_time(basis.setting, work, config, 1, 2)
    plain = step_time(basis.setting, work, config.model_copy(update={"cache": False}), 1, 2)
    passes = work.steps * 32 / 300
    share = 1 - 1 / passes
    expected = (1 - share) * plain.step_s + share * plain.student_s / 2
    assert cached.step_s == pytest.approx(expected)
