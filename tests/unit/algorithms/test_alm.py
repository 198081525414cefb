"""Likelihoods of pieces, against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from cross_toys import algorithm, case, gradients, loss
from torch import Tensor

from kdflow_lab.align.pairing import spans
from kdflow_lab.errors import ShapeError
from kdflow_lab.losses._likelihoods import MARGIN, binary_ce, limit


def test_the_coins() -> None:
    ln_p = torch.tensor([-1e-3, -0.5, -20.0, 0.0, -200.0], dtype=torch.float64)
    ln_q = torch.tensor([-3.0, -0.5, -1e-5, -5.0, 0.0], dtype=torch.float64)
    for tau in (1.0, 100.0):
        p, q = ((one - MARGIN).div(tau).exp() for one in (ln_p, ln_q))
        wanted = -(p * q.log() + (1 - p) * (1 - q).log())
        torch.testing.assert_close(binary_ce(ln_q, ln_p, tau), wanted, rtol=1e-6, atol=1e-12)


def test_the_limit_is_that_of_the_coins() -> None:
    ln_p = torch.tensor([-0.2, -3.0, -1.0], dtype=torch.float64)
    ln_q = torch.tensor([-1.0, -0.5, -1.0], dtype=torch.float64)
    tau = 1e6
    kl = tau * (binary_ce(ln_q, ln_p, tau) - binary_ce(ln_p, ln_p, tau))
    torch.testing.assert_close(limit(ln_q, ln_p), kl, rtol=1e-4, atol=1e-6)
    assert limit(ln_q, ln_p)[2].item() == pytest.approx(0.0)


def test_sure_and_impossible_pieces_have_gradients() -> None:
    for function in (binary_ce, limit):
        ln_q = torch.tensor([0.0, -1e-9, -0.7, -800.0], requires_grad=True)
        value = function(ln_q, torch.tensor([-1.0, 0.0, -0.7, -1.0]))
        value.sum().backward()
        assert ln_q.grad is not None
        assert value.isfinite().all()
        assert ln_q.grad.isfinite().all()


@pytest.mark.parametrize("piece_weight", ["one", "tokens"])
@pytest.mark.parametrize("comparison", ["binary_ce", "limit"])
def test_the_definition(comparison: str, piece_weight: str) -> None:
    of = case()
    params = {"comparison": comparison, "piece_weight": piece_weight, "tau": 10.0}
    output = loss(algorithm("alm", params=params, kd_ratio=0.7), of)
    ln_q = of.head.logits(of.hidden).log_softmax(-1).gather(1, of.labels[:, None])[:, 0]
    theirs = torch.from_numpy(of.pairing.teacher_labels)
    ln_p = of.teacher_head.logits(of.teacher).log_softmax(-1).gather(1, theirs[:, None])[:, 0]
    places = of.pairing
    total: Tensor | float = 0.0
    covered = 0
    pieces = spans(
        places.teacher_start, places.teacher_end, places.student_start, places.student_end
    )
    for first, last, start, end in pieces.tolist():
        p, q = ln_p[first:last].sum() - MARGIN, ln_q[start:end].sum() - MARGIN
        if comparison == "limit":
            value = (p - q) + p * ((-q).log() - (-p).log())
        else:
            value = binary_ce(q + MARGIN, p + MARGIN, 10.0)
        total = total + value * (end - start if piece_weight == "tokens" else 1)
        covered += end - start
    tokens = len(of.labels)
    wanted = (0.7 * total - 0.3 * ln_q.sum()) / tokens
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(output.loss, wanted)
    assert output.extra["aligned"].item() == pytest.approx(covered / tokens)
    for got, expected in zip(
        gradients(output, of), torch.autograd.grad(wanted, [of.hidden, of.head.weight]), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_a_token_that_the_teachers_head_does_not_have() -> None:
    of = case()
    with pytest.raises(ShapeError, match="teacher tokenizer's ids"):
        loss(algorithm("alm"), of._replace(teacher_head=of.teacher_head.cut(4)))
    assert math.isnan(loss(algorithm("alm"), of).agreement.item())
