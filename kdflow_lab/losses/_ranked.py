"""Distances between distributions over different vocabularies.

Shape suffixes: T tokens, V the student's vocabulary, X the teacher's, K shared ids. Arguments are
logits, already divided by the temperature; results are Float[T]; no gradient flows to the teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab.losses._columns import Shared
from kdflow_lab.losses._common import kl, log_probabilities


def sorted_l1(student_probabilities: Tensor, teacher_probabilities: Tensor) -> Tensor:
    """sum_r |q_(r) - p_(r)| of the probabilities sorted downwards, the shorter filled with zeros.

    Two sorted rows of a block are held on either side, besides what sorting takes.

    Args:
        student_probabilities: Float[T, V].
        teacher_probabilities: Float[T, X].

    Returns:
        Float[T], from 0 to 2 for whole distributions.

    Source: ULD, arXiv:2402.12030, section 3 (Wasserstein distance in closed form by sorting).
    """
    q = student_probabilities.sort(dim=-1, descending=True).values
    p = teacher_probabilities.sort(dim=-1, descending=True).values
    wider = max(q.shape[-1], p.shape[-1])
    q, p = F.pad(q, (0, wider - q.shape[-1])), F.pad(p, (0, wider - p.shape[-1]))
    return (q - p).abs().sum(dim=-1)


def uld(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The sorted L1 distance of two distributions, whatever their outcomes are.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, X].

    Source: as `sorted_l1`.
    """
    teacher = log_probabilities(teacher_logits.detach()).exp()
    return sorted_l1(log_probabilities(student_logits).exp(), teacher)


def matched_and_ranked(
    student_logits: Tensor,
    teacher_logits: Tensor,
    shared: Shared,
    rest: tuple[Tensor, Tensor],
    *,
    beta: float,
    weights: tuple[float, float],
) -> Tensor:
    """A divergence on the shared ids plus the sorted L1 distance of all others.

    The shared part is a partial sum over the shared ids, not renormalised, so it can be negative:
    beta sum p ln(p/m) + (1 - beta) sum q ln(q/m) with m = beta p + (1 - beta) q, and sum p ln(p/q)
    at beta = 0, sum q ln(q/p) at beta = 1.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, X].
        shared: The shared ids.
        rest: Int64, the other ids of the student and of the teacher.
        beta: From 0 to 1; weights the teacher.
        weights: Of the shared part and of the rest.

    Source: GOLD as TRL 1.16 has it (`trl/experimental/gold`), without its floor under the
    probabilities and with zeros where a side has no other ids.
    """
    p_logp = log_probabilities(teacher_logits.detach())
    q_logp = log_probabilities(student_logits)
    p_shared, q_shared = p_logp[:, shared.teacher_ids], q_logp[:, shared.student_ids]
    matched = _partial_jsd(p_shared, q_shared, beta)
    ranked = sorted_l1(q_logp[:, rest[0]].exp(), p_logp[:, rest[1]].exp())
    return weights[0] * matched + weights[1] * ranked


def _partial_jsd(p_logp: Tensor, q_logp: Tensor, beta: float) -> Tensor:
    """The sums above over the columns given, of log-probabilities."""
    if beta == 0.0:
        return kl(p_logp, q_logp)
    if beta == 1.0:
        return kl(q_logp, p_logp)
    log_beta = torch.tensor([beta, 1.0 - beta], dtype=q_logp.dtype, device=q_logp.device).log()
    m_logp = torch.logaddexp(p_logp + log_beta[0], q_logp + log_beta[1])
    # where both are impossible there is nothing to compare, and logaddexp's gradient is NaN
    nothing = p_logp.isneginf() & q_logp.isneginf()
    m_logp = m_logp.masked_fill(nothing, 0.0)
    return beta * kl(p_logp, m_logp) + (1.0 - beta) * kl(q_logp, m_logp)
