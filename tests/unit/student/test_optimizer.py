"""The learning-rate schedule by hand, and what is decayed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.config import DistillConfig
from kdflow_lab.student.optimizer import lr_at, make_optimizer

LR = 2e-3


def _config(**options) -> DistillConfig:
    return DistillConfig.parse(lr=LR, **options)


def test_warm_up_rises_linearly_to_the_full_rate_and_the_fall_begins_there():
    config = _config(warmup_ratio=0.1, scheduler="linear")
    rates = [lr_at(step, 40, config) for step in range(1, 7)]
    assert rates[:5] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR, LR])
    assert rates[5] == pytest.approx(LR * (1 - 1 / 36))


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert lr_at(1, 10, _config(warmup_ratio=0.0, scheduler="constant")) == LR


def test_constant_stays():
    config = _config(warmup_ratio=0.05, scheduler="constant", min_lr_ratio=0.5)
    assert {lr_at(step, 100, config) for step in range(5, 101)} == {LR}


def test_linear_falls_in_equal_parts_and_no_step_is_taken_with_nothing():
    config = _config(warmup_ratio=0.0, scheduler="linear")
    rates = [lr_at(step, 4, config) for step in range(1, 5)]
    assert rates == pytest.approx([LR, 0.75 * LR, 0.5 * LR, 0.25 * LR])


def test_cosine_is_half_at_half_time_and_nothing_after_the_end():
    config = _config(warmup_ratio=0.2, scheduler="cosine")
    assert lr_at(21, 100, config) == pytest.approx(LR)
    assert lr_at(41, 100, config) == pytest.approx(LR * (0.5 + 0.5 * math.cos(math.pi / 4)))
    assert lr_at(61, 100, config) == pytest.approx(LR / 2)
    assert 0 < lr_at(100, 100, config) < 1e-3 * LR
    assert lr_at(101, 100, config) == 0.0


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_the_schedule_falls_towards_the_least_rate(scheduler):
    config = _config(warmup_ratio=0.0, scheduler=scheduler, min_lr_ratio=0.1)
    assert lr_at(26, 50, config) == pytest.approx(0.55 * LR)
    assert 0.1 * LR < lr_at(50, 50, config) < 0.12 * LR


def test_steps_beyond_the_last_keep_the_least_rate():
    """`set(steps=…)` can shorten a run while it is under way."""
    config = _config(warmup_ratio=0.0, scheduler="cosine", min_lr_ratio=0.1)
    for step in (51, 52, 90):
        assert lr_at(step, 50, config) == pytest.approx(0.1 * LR)


def test_a_changed_rate_scales_the_whole_schedule():
    """`Run.set(lr=…)` changes the config in place."""
    config = _config(warmup_ratio=0.1)
    before = lr_at(30, 100, config)
    config.lr = 3 * LR
    assert lr_at(30, 100, config) == pytest.approx(3 * before)


@given(
    steps=st.integers(1, 300),
    warmup_ratio=st.floats(0, 1),
    min_lr_ratio=st.floats(0, 1),
    scheduler=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_rate_rises_once_and_then_falls_and_stays_in_its_bounds(
    steps, warmup_ratio, min_lr_ratio, scheduler
):
    config = _config(warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio, scheduler=scheduler)
    rates = [lr_at(step, steps, config) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    slack = 1e-12
    assert all(0 < rate <= LR + slack for rate in rates)
    assert all(a <= b + slack for a, b in pairwise(rates[: top + 1]))
    assert all(a + slack >= b for a, b in pairwise(rates[top:]))
    assert min(rates[top:]) >= LR * min_lr_ratio - slack


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.embedding = torch.nn.Embedding(5, 3)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)


def test_matrices_are_decayed_and_biases_and_norms_are_not():
    model = _Model()
    optimizer = make_optimizer(model, _config(weight_decay=0.3, betas=(0.8, 0.95)))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay.get(id(p)) for name, p in model.named_parameters()} == {
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "embedding.weight": 0.3,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert all(g["lr"] == LR and g["betas"] == (0.8, 0.95) for g in optimizer.param_groups)


def test_decay_alone_shrinks_only_the_matrices():
    """One step with zero gradients: AdamW multiplies what it decays by 1 - lr * weight_decay."""
    model = _Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, _config(weight_decay=0.5))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name in ("linear.weight", "embedding.weight")
        factor = 1 - LR * 0.5 if decayed else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
