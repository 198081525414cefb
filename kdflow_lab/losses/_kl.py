"""The two Kullback-Leibler divergences.

Notation of all families: p the teacher's distribution, q the student's, v a token of the
vocabulary. Arguments are logits Float[T, V], already divided by the temperature; results are
Float[T] in nats; the caller keeps the teacher out of the graph.
"""

from __future__ import annotations

from torch import Tensor

from kdflow_lab.losses._common import kl, log_probabilities


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v): the student covers all of the teacher's mass.

    Infinite where the student excludes (logit -inf) a token that the teacher allows.

    Source: Hinton et al., arXiv:1503.02531, section 2: the cross-entropy with soft targets, less
    the teacher's entropy, which has no gradient.
    """
    return kl(log_probabilities(teacher_logits), log_probabilities(student_logits))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(q || p) = sum_v q_v (log q_v - log p_v): the student stays within the teacher's modes.

    Infinite where the teacher excludes a token that the student allows.

    Source: MiniLLM, arXiv:2306.08543, equation 1, token by token.
    """
    return kl(log_probabilities(student_logits), log_probabilities(teacher_logits))
