"""Divergences to a mixture of both distributions: finite whatever the two exclude.

Notation and arguments as in `_kl`.
"""

from __future__ import annotations

from torch import Tensor

from kdflow_lab.losses._common import log_probabilities
from kdflow_lab.losses._kl import forward_kl, reverse_kl


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5) -> Tensor:
    """Generalized Jensen-Shannon divergence: beta KL(p || m) + (1 - beta) KL(q || m).

    The mixture is m = beta p + (1 - beta) q, so that beta weights the teacher. At 0.5 it is
    symmetric and at most log 2.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        beta: From 0 to 1. 0 and 1 are defined as forward and reverse KL; they are not the limits,
            which are zero (divided by beta or 1 - beta, those limits are the two KL).

    Source: GKD, arXiv:2306.13649, equation 1. KDFlow's `jsd_beta` weights the student instead.
    """
    if beta == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if beta == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    p, q = p_logp.exp(), q_logp.exp()
    m = beta * p + (1.0 - beta) * q
    return beta * _kl_to_mixture(p_logp, p, m) + (1.0 - beta) * _kl_to_mixture(q_logp, q, m)


def skewed_forward_kl(student_logits: Tensor, teacher_logits: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p || skew p + (1 - skew) q), at most -log(skew).

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        skew: Between 0 (which would be forward KL) and 1 (which would be zero).

    Source: DistiLLM, arXiv:2402.03898, section 3.1 (definition of the skew KL).
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    p, q = p_logp.exp(), q_logp.exp()
    return _kl_to_mixture(p_logp, p, skew * p + (1.0 - skew) * q)


def skewed_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, skew: float = 0.1) -> Tensor:
    """KL(q || (1 - skew) p + skew q), at most -log(skew).

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        skew: Between 0 (which would be reverse KL) and 1 (which would be zero).

    Source: DistiLLM, arXiv:2402.03898, section 3.1 (definition of the skew reverse KL).
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    p, q = p_logp.exp(), q_logp.exp()
    return _kl_to_mixture(q_logp, q, (1.0 - skew) * p + skew * q)


def _kl_to_mixture(a_logp_TV: Tensor, a_TV: Tensor, m_TV: Tensor) -> Tensor:
    """KL(a || m) where m is positive wherever a is."""
    # m may underflow where a is the smallest number above zero
    excluded = (a_TV == 0) | (m_TV == 0)
    difference = a_logp_TV.masked_fill(excluded, 0.0) - m_TV.masked_fill(excluded, 1.0).log()
    return (a_TV * difference).sum(dim=-1)
