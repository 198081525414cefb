"""Adaptive KL: forward and reverse KL, weighted by where the two distributions differ.

Notation and arguments as in `_kl`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.losses._common import infinite_where, kl, log_probabilities

LISTED = 1024
"""Most likely tokens that are looked at before a whole row is sorted, which is 16 times slower."""


def adaptive_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.5) -> Tensor:
    """(g_h KL(p || q) + g_t KL(q || p)) / (g_h + g_t).

    The teacher's tail are its least likely tokens whose probabilities add up to at most alpha, the
    head are the others. g_h and g_t are sum |p - q| over head and tail: weights, without a
    gradient. Where p = q both are 1/2, and the value is 0.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        alpha: From 0 to 1: the tail's mass. The paper's head mass is 1 - alpha.

    Source: Wu et al., Rethinking KL divergence in knowledge distillation for LLMs,
    arXiv:2404.02657, section 4 (adaptive KL: its definitions of head, tail and weights).
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    with torch.no_grad():
        p = p_logp.exp()
        gap = (p - q_logp.exp()).abs()
        head_gap, whole_gap = _head_gap(p, gap, alpha), gap.sum(dim=-1)
        share = torch.where(whole_gap > 0, head_gap / whole_gap, 0.5).clamp(0.0, 1.0)
    forward, reverse = kl(p_logp, q_logp), kl(q_logp, p_logp)
    # no share of something infinite is zero
    value = torch.where(share > 0, share * forward, 0.0)
    value = value + torch.where(share < 1, (1.0 - share) * reverse, 0.0)
    return infinite_where(value.isinf(), value)


def _head_gap(p_TV: Tensor, gap_TV: Tensor, alpha: float) -> Tensor:
    """Sum `gap` over the head of p, Float[T].

    The head of a language model's distribution is a few tokens: they are found without sorting
    the vocabulary, and only where they are not, whole rows are sorted.
    """
    if p_TV.shape[-1] <= 8 * LISTED:
        return _sorted_head_gap(p_TV, gap_TV, alpha)
    top = p_TV.topk(LISTED, dim=-1)
    rest_T = p_TV.scatter(-1, top.indices, 0.0).sum(dim=-1)
    # running sums from the least likely of the listed ones up
    sums = rest_T[..., None] + top.values.flip(-1).cumsum(dim=-1)
    head = (sums > alpha).flip(-1)
    listed = (gap_TV.gather(-1, top.indices) * head).sum(dim=-1)
    beyond = rest_T > alpha
    if bool(beyond.any()):
        listed[beyond] = _sorted_head_gap(p_TV[beyond], gap_TV[beyond], alpha)
    return listed


def _sorted_head_gap(p_TV: Tensor, gap_TV: Tensor, alpha: float) -> Tensor:
    """The same by sorting."""
    values, order = p_TV.sort(dim=-1)
    head = values.cumsum(dim=-1) > alpha
    return (gap_TV.gather(-1, order) * head).sum(dim=-1)
