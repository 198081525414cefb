"""Forward and reverse KL with their gradients in closed form, in place.

Shape suffixes: R tokens of a block, V vocabulary. The same numbers as the divergences of `_kl`
under autograd (a test holds them equal), in a third of the time: what autograd would keep for
later is overwritten at once. They matter most where the products are fast, in bfloat16.

With z and t the two models' logits, divided by the temperature and less their row's largest, the
gradient with respect to z is `ours * q + theirs * X`, where q is the student's distribution, X
another tensor, and `ours` and `theirs` one number a row: so the gradient of the cross-entropy,
which is a multiple of q too, joins in the same pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 1e38
"""Beyond it a sum of float32 stands for infinity."""


class InPlace(NamedTuple):
    """A divergence and the parts of its gradient: value, ours, theirs Float[R], x Float[R, V]."""

    value: Tensor
    ours: Tensor
    x: Tensor
    theirs: Tensor


def forward_kl(z_RV: Tensor, t_RV: Tensor, q_RV: Tensor, log_zs_R: Tensor, p_RV: Tensor) -> InPlace:
    """KL(p || q); the gradient is q - p.

    Args:
        z_RV: Of the student; may be overwritten.
        t_RV: Of the teacher; overwritten.
        q_RV: softmax(z).
        log_zs_R: log-sum-exp(z).
        p_RV: Scratch, becomes softmax(t).
    """
    log_zt_R = softmax_into(t_RV, p_RV)
    # p = 0 times an infinite difference is NaN, and zero is meant; NaN logits still show in log_z
    terms_RV = t_RV.sub_(z_RV).mul_(p_RV).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    value_R = terms_RV.sum(dim=-1) + log_zs_R - log_zt_R
    counts_R = (value_R != torch.inf).to(value_R.dtype)
    return InPlace(value_R, counts_R, p_RV, -counts_R)


def reverse_kl(z_RV: Tensor, t_RV: Tensor, q_RV: Tensor, log_zs_R: Tensor, p_RV: Tensor) -> InPlace:
    """KL(q || p); the gradient is q (z - t - sum q (z - t)).

    Args as in `forward_kl`.
    """
    log_zt_R = softmax_into(t_RV, p_RV)
    terms_RV = torch.sub(z_RV, t_RV, out=t_RV).mul_(q_RV)
    terms_RV.nan_to_num_(nan=0.0, posinf=torch.finfo(t_RV.dtype).max)
    sum_R = terms_RV.sum(dim=-1)
    infinite_R = sum_R > LARGEST
    value_R = torch.where(infinite_R, torch.inf, sum_R - log_zs_R + log_zt_R)
    counts_R = (~infinite_R).to(value_R.dtype)
    return InPlace(value_R, -sum_R.masked_fill(infinite_R, 0.0), terms_RV, counts_R)


def partial_forward_kl(
    z_RV: Tensor, t_RV: Tensor, q_RV: Tensor, log_zs_R: Tensor, scratch_RV: Tensor
) -> InPlace:
    """Sum over t > 0 of t (ln t - ln q) for masses t that may sum to less than 1.

    The gradient is M q - t with M = sum t: what is missing from t has no term.

    Args:
        z_RV: Of the student.
        t_RV: Masses, not logits.
        q_RV: softmax(z).
        log_zs_R: log-sum-exp(z).
        scratch_RV: Overwritten.
    """
    mass_R = t_RV.sum(dim=-1)
    # a mass of 0 may have any logarithm
    torch.clamp(t_RV, min=torch.finfo(t_RV.dtype).tiny, out=scratch_RV).log_()
    negative_entropy_R = torch.linalg.vecdot(t_RV, scratch_RV)
    # 0 times an infinite logit is NaN, and zero is meant; NaN logits still show in log_z
    torch.mul(t_RV, z_RV, out=scratch_RV).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    value_R = negative_entropy_R - scratch_RV.sum(dim=-1) + mass_R * log_zs_R
    counts_R = (value_R != torch.inf).to(value_R.dtype)
    return InPlace(value_R, counts_R * mass_R, t_RV, -counts_R)


def softmax_into(logits_RV: Tensor, out_RV: Tensor) -> Tensor:
    """Write softmax(logits) of rows whose largest logit is 0; return log-sum-exp, Float[R].

    The token with logit 0 has the probability 1 / sum exp, which is the largest.
    """
    torch.softmax(logits_RV, dim=-1, out=out_RV)
    return -out_RV.amax(dim=-1).log()


def top_token(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and a token that has it, Float[R, 1] and Int64[R, 1]."""
    width = logits_RV.shape[-1]
    whole = width // 256 * 256
    if logits_RV.device.type != "cpu" or whole < 4096:
        return logits_RV.max(dim=-1, keepdim=True)
    # torch's CPU kernel finds a maximum fast and its place slowly: look for the place in one piece
    pieces = logits_RV[:, :whole].unflatten(-1, (-1, 256))
    piece = pieces.amax(dim=-1).argmax(dim=-1, keepdim=True)
    within = pieces.gather(1, piece[:, :, None].expand(-1, 1, 256))[:, 0]
    largest, place = within.max(dim=-1, keepdim=True)
    place = place + 256 * piece
    if whole < width:
        later, at = logits_RV[:, whole:].max(dim=-1, keepdim=True)
        # a NaN is the largest of all
        wins = (later > largest) | later.isnan()
        largest = torch.where(wins, later, largest)
        place = torch.where(wins, at + whole, place)
    return largest, place
