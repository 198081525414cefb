"""KL on the k most likely tokens and one bucket for all others.

Notation and arguments as in `_kl`. What is left out is only how the mass of the bucket is spread:
the value is at most that of the whole vocabulary, and equal to it where k = V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.losses._common import kl, log_probabilities


def topk_forward_kl(student_logits: Tensor, teacher_logits: Tensor, k: int = 50) -> Tensor:
    """KL(p || q) over the teacher's k most likely tokens and the mass of the rest as one outcome.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        k: At least 1; more than V means V.

    Source: KL of a partition of the outcomes, at most the whole KL by the log-sum inequality (Cover
    and Thomas, Elements of information theory, theorem 2.7.1). Renormalizing the k instead, as is
    often done, would not see how much mass lies outside.
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    top = p_logp.topk(min(k, p_logp.shape[-1]), dim=-1).indices
    return kl(_coarse(p_logp, top), _coarse(q_logp, top))


def topk_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, k: int = 50) -> Tensor:
    """KL(q || p) over the student's k most likely tokens and the mass of the rest as one outcome.

    The student's tokens, since the expectation runs over the student: they hold its mass.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        k: At least 1; more than V means V.

    Source: as `topk_forward_kl`, with MiniLLM's direction, arXiv:2306.08543, equation 1.
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    top = q_logp.detach().topk(min(k, q_logp.shape[-1]), dim=-1).indices
    return kl(_coarse(q_logp, top), _coarse(p_logp, top))


def _coarse(logp_TV: Tensor, top_TK: Tensor) -> Tensor:
    """Log-probabilities of the listed tokens and of all others together, Float[T, K + 1]."""
    listed = logp_TV.gather(-1, top_TK)
    if top_TK.shape[-1] == logp_TV.shape[-1]:
        return listed
    rest = logp_TV.scatter(-1, top_TK, -torch.inf)
    # log-sum-exp, written so that a rest without any mass has the gradient zero, not NaN
    largest = rest.detach().amax(dim=-1, keepdim=True)
    empty = largest.isneginf()
    total = (rest - largest.masked_fill(empty, 0.0)).exp().sum(dim=-1, keepdim=True)
    log_total = total.masked_fill(empty, 1.0).log() + largest
    return torch.cat([listed, log_total.masked_fill(empty, -torch.inf)], dim=-1)
