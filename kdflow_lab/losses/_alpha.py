"""Alpha-divergences, and the total variation distance.

Notation and arguments as in `_kl`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.losses._common import log_probabilities
from kdflow_lab.losses._kl import forward_kl, reverse_kl


def alpha_divergence(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.5) -> Tensor:
    """sum_v (alpha p_v + (1 - alpha) q_v - p_v^alpha q_v^(1-alpha)) / (alpha (1 - alpha)).

    alpha -> 1 is forward KL, alpha -> 0 reverse KL (so they are defined); at 0.5 it is four times
    the squared Hellinger distance 1 - sum_v sqrt(p_v q_v). Finite for 0 < alpha < 1.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        alpha: From 0 to 1.

    Source: Minka, Divergence measures and message passing, MSR-TR-2005-173, section 2 (the
    definition of the alpha-divergence).
    """
    if alpha == 0.0:
        return reverse_kl(student_logits, teacher_logits)
    if alpha == 1.0:
        return forward_kl(student_logits, teacher_logits)
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    # D_alpha(p || q) = D_(1-alpha)(q || p): the smaller power keeps its digits near the limits
    if alpha > 0.5:
        return _alpha(q_logp, p_logp, 1.0 - alpha)
    return _alpha(p_logp, q_logp, alpha)


def _alpha(a_logp_TV: Tensor, b_logp_TV: Tensor, power: float) -> Tensor:
    """The divergence of a from b for 0 < power <= 1/2, without cancellation.

    a^power b^(1-power) = b e^x with x = power (log a - log b), and b - b e^x = -b expm1(x) keeps
    its digits for small x. Beyond x = 1, where e^x could overflow though b e^x does not, the rest
    b e^x - b e^1 is added as a difference of two exponentials.
    """
    excluded = a_logp_TV.isneginf() | b_logp_TV.isneginf()
    a_logp = a_logp_TV.masked_fill(excluded, 0.0)
    b_logp = b_logp_TV.masked_fill(excluded, 0.0)
    x = power * (a_logp - b_logp)
    small = x.clamp(max=1.0)
    a, b = a_logp_TV.exp(), b_logp_TV.exp()
    # where one side excludes a token, the power's product is zero, and small is too
    lost = torch.where(excluded, b, -b * torch.expm1(small))
    more = torch.where(excluded, 0.0, (b_logp + x).exp() - (b_logp + small).exp())
    value = power * (a - b) + lost - more
    return value.sum(dim=-1) / (power * (1.0 - power))


def tvd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Total variation distance, sum_v |p_v - q_v| / 2, from 0 to 1.

    Source: Wen et al., f-divergence minimization for sequence-level knowledge distillation,
    arXiv:2307.15190, section 3 (TVD distillation, step by step).
    """
    p, q = log_probabilities(teacher_logits).exp(), log_probabilities(student_logits).exp()
    return 0.5 * (p - q).abs().sum(dim=-1)
