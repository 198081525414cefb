"""Losses on the few most likely tokens: their order, and the first of them.

Notation and arguments as in `_kl`.
"""

from __future__ import annotations

from torch import Tensor

from kdflow_lab.losses._common import infinite_where, log_probabilities


def hrl(student_logits: Tensor, teacher_logits: Tensor, k: int = 5) -> Tensor:
    """Hierarchical ranking loss: the student shall order the top tokens as the teacher does.

    With A the student's and B the teacher's k most likely tokens, most likely first:
    sum_i max(0, q(B_i) - q(B_1)) asks that the teacher's first token be the student's first among
    B; sum_ij max(0, q(A_j) - q(B_i)) [p(B_i) > p(A_j)] asks that no token of the student's come
    before one that the teacher finds more likely. Which tokens are listed has no gradient.

    Args:
        student_logits: Float[T, V].
        teacher_logits: Float[T, V].
        k: At least 1; more than V means V.

    Source: KDFlow, arXiv:2603.01875 (`hrl`), as intended: its code compares the student's own
    probability where the second gate says p(B_i), and leaves the temperature out.
    """
    k = min(k, student_logits.shape[-1])
    q, p = log_probabilities(student_logits).exp(), log_probabilities(teacher_logits).exp()
    students = q.detach().topk(k, dim=-1).indices
    teachers = p.topk(k, dim=-1)
    q_A, q_B = q.gather(-1, students), q.gather(-1, teachers.indices)
    p_A, p_B = p.gather(-1, students), teachers.values
    first = (q_B - q_B[..., :1]).clamp(min=0).sum(dim=-1)
    wrong = (q_A[..., None, :] - q_B[..., :, None]).clamp(min=0)
    gate = p_B[..., :, None] > p_A[..., None, :]
    # comparisons would hide a NaN of the teacher's
    return first + (wrong * gate).sum(dim=(-2, -1)) + 0.0 * p_B.sum(dim=-1)


def top1_ce(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-p_i log q_i of the teacher's most likely token i.

    Infinite where the student excludes that token.

    Source: KDFlow, arXiv:2603.01875 (`top1_ce`); with p_i = 1 it is the word-level part of Kim and
    Rush, Sequence-level knowledge distillation, arXiv:1606.07947, section 3.
    """
    p_logp, q_logp = log_probabilities(teacher_logits), log_probabilities(student_logits)
    top = p_logp.max(dim=-1, keepdim=True)
    q_top = q_logp.gather(-1, top.indices)[..., 0]
    excluded = q_top.isneginf()
    value = -top.values[..., 0].exp() * q_top.masked_fill(excluded, 0.0)
    return infinite_where(excluded, value)
