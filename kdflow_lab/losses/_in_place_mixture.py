"""Closed forms of the divergences to a mixture, and of the total variation; see `_in_place`.

For a divergence sum_v F(p_v, q_v) with h = dF/dq, the gradient with respect to the student's logits
is q (h - sum q h): here X = q h. With r = p / m (or q / m) a term is p log r, and 0 where p is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.losses._in_place import InPlace, forward_kl, reverse_kl, softmax_into


def jsd(
    z_RV: Tensor,
    t_RV: Tensor,
    q_RV: Tensor,
    log_zs_R: Tensor,
    p_RV: Tensor,
    *,
    beta: float = 0.5,
) -> InPlace:
    """Beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; h = (1-beta) log(q/m)."""
    if beta == 0.0:
        return forward_kl(z_RV, t_RV, q_RV, log_zs_R, p_RV)
    if beta == 1.0:
        return reverse_kl(z_RV, t_RV, q_RV, log_zs_R, p_RV)
    checks_R = _start(t_RV, log_zs_R, p_RV)
    m_RV = torch.lerp(q_RV, p_RV, beta, out=t_RV)
    _terms(p_RV, torch.div(p_RV, m_RV, out=z_RV))
    teachers_R = z_RV.sum(dim=-1)
    x_RV = _terms(q_RV, torch.div(q_RV, m_RV, out=t_RV)).mul_(1.0 - beta)
    students_R = x_RV.sum(dim=-1)
    value_R = beta * teachers_R + students_R + checks_R
    return InPlace(value_R, -students_R, x_RV, torch.ones_like(value_R))


def skewed_forward_kl(
    z_RV: Tensor,
    t_RV: Tensor,
    q_RV: Tensor,
    log_zs_R: Tensor,
    p_RV: Tensor,
    *,
    skew: float = 0.1,
) -> InPlace:
    """KL(p || m), m = skew p + (1 - skew) q; h = -(1 - skew) p / m."""
    checks_R = _start(t_RV, log_zs_R, p_RV)
    ratio_RV = torch.lerp(q_RV, p_RV, skew, out=t_RV)
    torch.div(p_RV, ratio_RV, out=ratio_RV)
    value_R = _terms(p_RV, z_RV.copy_(ratio_RV)).sum(dim=-1) + checks_R
    x_RV = _finite(ratio_RV).mul_(q_RV).mul_(skew - 1.0)
    return InPlace(value_R, -x_RV.sum(dim=-1), x_RV, torch.ones_like(value_R))


def skewed_reverse_kl(
    z_RV: Tensor,
    t_RV: Tensor,
    q_RV: Tensor,
    log_zs_R: Tensor,
    p_RV: Tensor,
    *,
    skew: float = 0.1,
) -> InPlace:
    """KL(q || m), m = (1 - skew) p + skew q; h = log(q / m) + 1 - skew q / m."""
    checks_R = _start(t_RV, log_zs_R, p_RV)
    ratio_RV = torch.lerp(p_RV, q_RV, skew, out=t_RV)
    torch.div(q_RV, ratio_RV, out=ratio_RV)
    x_RV = _terms(q_RV, z_RV.copy_(ratio_RV))
    value_R = x_RV.sum(dim=-1) + checks_R
    # the 1 of h shifts all entries alike, and drops out of q (h - sum q h)
    x_RV.addcmul_(_finite(ratio_RV), q_RV, value=-skew)
    ratio_RV.copy_(x_RV)
    return InPlace(value_R, -ratio_RV.sum(dim=-1), ratio_RV, torch.ones_like(value_R))


def tvd(z_RV: Tensor, t_RV: Tensor, q_RV: Tensor, log_zs_R: Tensor, p_RV: Tensor) -> InPlace:
    """Sum |p - q| / 2; h = sign(q - p) / 2."""
    checks_R = _start(t_RV, log_zs_R, p_RV)
    difference_RV = torch.sub(q_RV, p_RV, out=t_RV)
    value_R = 0.5 * torch.abs(difference_RV, out=p_RV).sum(dim=-1) + checks_R
    x_RV = difference_RV.sign_().mul_(q_RV).mul_(0.5)
    return InPlace(value_R, -x_RV.sum(dim=-1), x_RV, torch.ones_like(value_R))


def _start(t_RV: Tensor, log_zs_R: Tensor, p_RV: Tensor) -> Tensor:
    """Write the teacher's distribution; return zeros that are NaN where a row's logits are."""
    return 0.0 * (softmax_into(t_RV, p_RV) + log_zs_R)


def _terms(a_RV: Tensor, ratio_RV: Tensor) -> Tensor:
    """Write a log(ratio) in the ratio's place, 0 where a is 0."""
    return _finite(ratio_RV.log_().mul_(a_RV))


def _finite(tensor_RV: Tensor) -> Tensor:
    """0 / 0 and tiny / 0 stand for entries of no weight (m underflows where p and q nearly do)."""
    return tensor_RV.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


MIXTURES = {
    "jsd": jsd,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "tvd": tvd,
}
