"""Losses on hidden states, and the algorithm that adds them."""

from __future__ import annotations

import pytest
import torch

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import Head, HiddenProjection, hidden_cosine, hidden_loss, hidden_mse


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + shape[-1])
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_values_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 2.0], [6.0, 8.0], [1.0, 1.0]], dtype=torch.float64)
    assert hidden_mse(student, teacher).tolist() == [2.5, 12.5, 1.0]
    torch.testing.assert_close(
        hidden_cosine(student, teacher), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["mse", "cosine"])
def test_gradients(name: str) -> None:
    student, teacher = _rows(4, 5).requires_grad_(), _rows(4, 5, seed=9)
    assert torch.autograd.gradcheck(lambda rows: hidden_loss(name, rows, teacher), student)
    assert hidden_loss(name, student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    (gradient,) = torch.autograd.grad(
        hidden_loss(name, torch.zeros_like(student).requires_grad_() + 0 * student, teacher).sum(),
        student,
    )
    assert gradient.isfinite().all()


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match="HiddenProjection"):
        hidden_mse(_rows(3, 4), _rows(3, 5))
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        hidden_loss("cosin", _rows(3, 4), _rows(3, 4))
    with pytest.raises(ConfigError, match="above 0"):
        HiddenProjection(0, 4)


@pytest.mark.parametrize("name", ["mse", "cosine"])
@pytest.mark.parametrize("teacher_width", [6, 9])
def test_the_algorithm_adds_the_distance(name: str, teacher_width: int) -> None:
    tokens, width, ids = 7, 6, 11
    hidden, weight = _rows(tokens, width).requires_grad_(), _rows(ids, width)
    teacher, teacher_weight = _rows(tokens, teacher_width), _rows(ids, teacher_width)
    labels = torch.arange(tokens)
    config = DistillConfig.parse(algorithm="vanilla_kd", hidden_loss=name, hidden_weight=0.3)
    algorithm = make_algorithm(config)
    projection = algorithm.beside(width, teacher_width)  # type: ignore[attr-defined]
    assert (projection is None) == (teacher_width == width)

    def loss(of: object) -> torch.Tensor:
        return of.loss(  # type: ignore[attr-defined]
            hidden, Head(weight), rows, Head(teacher_weight), labels, num_valid_tokens=20
        ).loss

    rows = teacher.clone()
    ours = loss(algorithm)
    plain = loss(make_algorithm(DistillConfig(algorithm="vanilla_kd")))
    mapped = hidden if projection is None else projection(hidden)
    expected = plain + 0.3 * hidden_loss(name, mapped, teacher).sum() / 20
    torch.testing.assert_close(ours, expected)
    inputs = [hidden] if projection is None else [hidden, projection.weight]
    theirs = torch.autograd.grad(expected, inputs)
    rows.fill_(torch.nan)  # the slot of the ring is given back before backward
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), theirs)


def test_widths_that_differ_need_the_projection() -> None:
    algorithm = make_algorithm(DistillConfig(algorithm="vanilla_kd", hidden_loss="mse"))
    with pytest.raises(ConfigError, match="needs a projection"):
        algorithm.loss(
            _rows(3, 4), Head(_rows(5, 4)), _rows(3, 6), Head(_rows(5, 6)), torch.zeros(3).long(),
            num_valid_tokens=3,
        )  # fmt: skip


def test_the_projection_is_the_same_on_every_rank_and_keeps_the_size_of_rows() -> None:
    first, second = HiddenProjection(64, 300, seed=3), HiddenProjection(64, 300, seed=3)
    assert torch.equal(first.weight, second.weight)
    rows = first(torch.randn(500, 64))
    assert rows.square().mean().item() == pytest.approx(1.0, abs=0.1)
