"""Estimators of the reverse KL from sampled tokens: their expectations are summed exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdflow_lab.losses import divergence, k1, k2, k3, reverse_kl_surrogate

V = 7


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, V, generator=generator, dtype=torch.float64)
    return made[0].requires_grad_(), made[1]


def test_values_by_hand() -> None:
    q, p = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    log2 = math.log(2)
    torch.testing.assert_close(k1(q, p), torch.tensor([log2, -log2]))
    torch.testing.assert_close(k2(q, p), torch.tensor([log2**2 / 2] * 2))
    torch.testing.assert_close(k3(q, p), torch.tensor([-0.5 + log2, 1.0 - log2]))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_value_is_unbiased(logits, estimator) -> None:
    q, p = logits[0].log_softmax(-1), logits[1].log_softmax(-1)
    expected = divergence("reverse_kl", logits[0][None], logits[1][None])[0]
    torch.testing.assert_close((q.exp() * estimator(q, p)).sum(), expected)


@pytest.mark.parametrize(
    ("estimator", "of"),
    [(k1, None), (k2, "reverse_kl"), (k3, "forward_kl"), (reverse_kl_surrogate, "reverse_kl")],
)
def test_the_gradients_expectation_is_what_the_module_says(logits, estimator, of) -> None:
    student, teacher = logits
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    # tokens are sampled: their probabilities are no part of the graph
    (gradient,) = torch.autograd.grad((q.exp().detach() * estimator(q, p)).sum(), student)
    if of is None:
        expected = torch.zeros_like(student)
    else:
        (expected,) = torch.autograd.grad(divergence(of, student[None], teacher[None])[0], student)
    torch.testing.assert_close(gradient, expected)


def test_importance_weights_correct_for_an_older_sampler(logits) -> None:
    student, teacher = logits
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    old = torch.linspace(-1, 1, V, dtype=torch.float64).log_softmax(-1)
    (gradient,) = torch.autograd.grad((old.exp() * reverse_kl_surrogate(q, p, old)).sum(), student)
    (expected,) = torch.autograd.grad(
        divergence("reverse_kl", student[None], teacher[None])[0], student
    )
    torch.testing.assert_close(gradient, expected)


def test_equal_and_impossible_tokens() -> None:
    q = torch.tensor([-1.0, -1e4, -2.0], requires_grad=True)
    for estimator in (k1, k2, k3, reverse_kl_surrogate):
        value = estimator(q, q.detach())
        assert (value == 0).all()
    p = torch.tensor([-1.0, -2.0, -math.inf])
    for estimator in (k1, k2, k3):
        assert estimator(q, p)[2] == math.inf
