"""Reverse KL from sampled tokens: estimators on log-probabilities, for on-policy distillation.

Let x be a token that the student sampled (temperature 1, nothing cut off), log q its
log-probability under the student, log p under the teacher, and r = p(x) / q(x). The expectation of
each estimator's *value* over x ~ q is KL(q || p), except that k2 is biased where p and q differ
much. Their *gradients* differ, since the sample itself depends on the student:

    k1   expectation zero: as a loss it teaches nothing
    k2   expectation is the gradient of KL(q || p), so k2 is right as a loss
    k3   expectation is the gradient of KL(p || q): right as a value, another loss as a loss
    reverse_kl_surrogate   expectation is the gradient of KL(q || p): the policy gradient

All take and return Float[T] (any shape) in nats, float32 or as given; no gradient flows to the
teacher. An impossible token (log p = -inf) costs inf.

Source: Schulman, Approximating KL divergence, 2020, http://joschu.net/blog/kl-approx.html; for the
gradients Tang and Munos, On a few pitfalls in KL divergence gradient estimation for RL,
arXiv:2506.09477.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """-log r = log q - log p: unbiased, of high variance, negative at times.

    Source: Schulman 2020, estimator k1.
    """
    return student_logprobs - teacher_logprobs.detach()


def k2(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """(log r)^2 / 2: of low variance and bias, never negative.

    Source: Schulman 2020, estimator k2.
    """
    return 0.5 * (teacher_logprobs.detach() - student_logprobs).square()


def k3(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, of low variance, never negative.

    Source: Schulman 2020, estimator k3.
    """
    log_ratio = teacher_logprobs.detach() - student_logprobs
    # expm1 keeps the digits of r - 1 near r = 1, where the two terms cancel
    return torch.expm1(log_ratio) - log_ratio


def reverse_kl_surrogate(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    sampled_logprobs: Tensor | None = None,
) -> Tensor:
    """A loss whose gradient is the policy gradient with the advantage log p - log q of each token.

    Args:
        student_logprobs: Float[T], of the student that is trained.
        teacher_logprobs: Float[T].
        sampled_logprobs: Float[T], of the student as it was when it sampled, if that was some steps
            ago: the gradient is then weighted by q / q_sampled.

    Returns:
        Float[T]; its value is the weight times log q - log p, so that its mean still reads as a
        reverse KL.

    Source: Lu and Thinking Machines Lab, On-policy distillation, 2025; REINFORCE (Williams 1992)
    with importance weights.
    """
    cost = (student_logprobs - teacher_logprobs).detach()
    before = student_logprobs.detach() if sampled_logprobs is None else sampled_logprobs.detach()
    return (student_logprobs - before).exp() * cost
