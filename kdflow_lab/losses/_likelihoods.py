"""Likelihoods of pieces of text: what two models make of the same bytes, however they are split.

Arguments are log-probabilities Float[P] of pieces, at most 0; results are Float[P] in nats; no
gradient flows to the teacher.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 1e-6
"""Taken off every log-probability, so that the likelihood of a sure piece has a complement."""


def binary_ce(student_logprob: Tensor, teacher_logprob: Tensor, tau: float = 100.0) -> Tensor:
    """-[p ln q + (1 - p) ln(1 - q)] with p = P^(1/tau) and q = Q^(1/tau).

    The cross-entropy of two coins: smallest where Q = P, and the coins' entropy there.

    Args:
        student_logprob: ln Q.
        teacher_logprob: ln P.
        tau: Above 0; a large one makes small likelihoods comparable.

    Source: approximate likelihood matching, arXiv:2503.20083; the margin as in its repository
    (tokenkit).
    """
    ln_p = (teacher_logprob.detach() - MARGIN) / tau
    ln_q = (student_logprob - MARGIN) / tau
    return -(ln_p.exp() * ln_q - torch.expm1(ln_p) * _log1mexp(ln_q))


def limit(student_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
    """(ln P - ln Q) + ln P (ln(-ln Q) - ln(-ln P)): tau times the coins' KL, for tau to infinity.

    Args:
        student_logprob: ln Q.
        teacher_logprob: ln P.

    Source: as `binary_ce`.
    """
    ln_p, ln_q = teacher_logprob.detach() - MARGIN, student_logprob - MARGIN
    return (ln_p - ln_q) + ln_p * ((-ln_q).log() - (-ln_p).log())


def _log1mexp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x < 0, with all digits on both ends.

    Source: Mächler, Accurately computing log(1 - exp(-|a|)), 2012, equation 7.
    """
    near = x > -math.log(2.0)
    # each branch sees only what it is for: the other one's gradient would be 0 * inf
    close = (-torch.expm1(x.where(near, -0.5))).log()
    far = torch.log1p(-x.where(~near, -1.0).exp())
    return torch.where(near, close, far)
