"""Values and gradient of a few tokens, from both models' logits.

Shape suffixes: R tokens of a block, V vocabulary. One implementation for every divergence: its
function runs under autograd on the block. Where `_in_place` has a closed form, that is used
instead. Cross-entropy and top tokens come from the same logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._divergences import per_token_value
from kdflow_lab.losses._in_place import InPlace, forward_kl, reverse_kl, softmax_into, top_token
from kdflow_lab.losses._in_place_mixture import MIXTURES

IN_PLACE: dict[str, Callable[..., InPlace]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    **MIXTURES,
}
"""The divergences that have a closed form; all others run under autograd."""

STUDENT, TEACHER, SLOPE, COLD, WARM, SCRATCH = range(6)
"""Numbers of a block's tensors: logits of both, slope of a soft-cap, softmax at temperature 1 and
at the divergence's, and one that a closed form may use."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is computed of a token.

    Attributes:
        divergence: Full name.
        params: Checked parameters of the divergence.
        temperature: Divides both logits in the divergence.
        factor: Multiplies the divergence.
        ce_weight: Of a token's cross-entropy in the loss; 0: no gradient of it.
        kd_weight: Of a token's divergence in the loss; 0: no gradient of it.
        in_place: Use a closed form where there is one.
    """

    divergence: str = "forward_kl"
    params: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    factor: float = 1.0
    ce_weight: float = 0.0
    kd_weight: float = 0.0
    in_place: bool = True

    @property
    def closed_form(self) -> bool:
        """Whether no autograd is needed."""
        return self.in_place and self.divergence in IN_PLACE

    @property
    def wants_gradient(self) -> bool:
        """Whether a gradient is computed at all."""
        return self.ce_weight != 0.0 or self.kd_weight != 0.0


class Found(NamedTuple):
    """Float[R] each: divergence, cross-entropy, agreement; None where there is no such thing."""

    kd: Tensor | None = None
    ce: Tensor | None = None
    agreement: Tensor | None = None


class Block:
    """Tensors of a block, made once and used for every block."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._like = {"size": (rows, width), "dtype": dtype, "device": device}
        self._tensors: dict[int, Tensor] = {}

    def tensor(self, rows: int, number: int) -> Tensor:
        """Tensor `number`, Float[rows, V], with whatever is in it."""
        if number not in self._tensors:
            self._tensors[number] = torch.empty(**self._like)
        return self._tensors[number][:rows]

    def lifted(self, part_RV: Tensor, number: int) -> Tensor:
        """The logits themselves if they have the block's dtype, else a copy in tensor `number`."""
        if part_RV.dtype == self._like["dtype"]:
            return part_RV
        return self.tensor(len(part_RV), number).copy_(part_RV)


def take_block(
    z_RV: Tensor, t_RV: Tensor | None, labels_R: Tensor | None, terms: Terms, block: Block
) -> Found:
    """Compute a block's values; the gradient of its loss takes the place of `z`.

    Args:
        z_RV: The student's logits; overwritten.
        t_RV: The teacher's, or None; overwritten.
        labels_R: Int64[R], or None.
        terms: What is computed.
        block: Tensors to work in.
    """
    kd_R = ce_R = agreement_R = kd_gradient_RV = cold_RV = log_sum_R = None
    if t_RV is not None and not terms.closed_form:
        kd_R, kd_gradient_RV = _under_autograd(z_RV, t_RV, terms)
    largest_R1, top_R1 = top_token(z_RV)
    z_RV.sub_(largest_R1)
    if t_RV is not None:
        teachers_largest_R1, teachers_top_R1 = top_token(t_RV)
        agreement_R = (top_R1 == teachers_top_R1)[:, 0].to(z_RV.dtype)
        t_RV.sub_(teachers_largest_R1)
    if labels_R is not None:
        cold_RV = block.tensor(len(z_RV), COLD)
        log_sum_R = softmax_into(z_RV, cold_RV)
        ce_R = log_sum_R - z_RV.gather(1, labels_R[:, None])[:, 0]
    if t_RV is not None and terms.closed_form:
        kd_R, cold_RV = _in_closed_form(z_RV, t_RV, cold_RV, log_sum_R, terms, block)
    elif kd_gradient_RV is not None:
        torch.mul(kd_gradient_RV, terms.kd_weight * terms.factor, out=z_RV)
    elif terms.wants_gradient:
        z_RV.zero_()
    if terms.ce_weight != 0.0 and labels_R is not None:
        if cold_RV is not None:
            z_RV.add_(cold_RV, alpha=terms.ce_weight)
        z_RV.scatter_add_(1, labels_R[:, None], z_RV.new_full((len(z_RV), 1), -terms.ce_weight))
    return Found(kd_R, ce_R, agreement_R)


def _in_closed_form(
    z_RV: Tensor,
    t_RV: Tensor,
    cold_RV: Tensor | None,
    log_sum_R: Tensor | None,
    terms: Terms,
    block: Block,
) -> tuple[Tensor, Tensor | None]:
    """Write the divergence's gradient over `z`; return its values and the softmax yet to be added.

    At temperature 1 the softmax of the cross-entropy is the divergence's own, and its part of the
    gradient, which is a multiple of it, is written along: None is left to be added then.
    """
    warm_RV, log_warm_R = cold_RV, log_sum_R
    if terms.temperature != 1.0:
        z_RV.div_(terms.temperature)
        t_RV.div_(terms.temperature)
    if warm_RV is None or log_warm_R is None or terms.temperature != 1.0:
        warm_RV = block.tensor(len(z_RV), WARM)
        log_warm_R = softmax_into(z_RV, warm_RV)
    scratch_RV = block.tensor(len(z_RV), SCRATCH)
    closed_form = IN_PLACE[terms.divergence]
    found = closed_form(z_RV, t_RV, warm_RV, log_warm_R, scratch_RV, **terms.params)
    if terms.wants_gradient:
        weight = terms.kd_weight * terms.factor / terms.temperature
        ours_R = weight * found.ours
        if warm_RV is cold_RV:
            ours_R = ours_R + terms.ce_weight
            cold_RV = None
        torch.mul(warm_RV, ours_R[:, None], out=z_RV)
        z_RV.addcmul_(found.x, (weight * found.theirs)[:, None])
    return terms.factor * found.value, cold_RV


def _under_autograd(z_RV: Tensor, t_RV: Tensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Any divergence: its values, and its gradient if that is wanted."""
    wanted = terms.kd_weight != 0.0
    leaf_RV = z_RV.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        value_R = per_token_value(terms.divergence, leaf_RV, t_RV, terms.temperature, terms.params)
    gradient_RV = None
    if wanted:
        (gradient_RV,) = torch.autograd.grad(value_R, leaf_RV, torch.ones_like(value_R))
    return terms.factor * value_R.detach(), gradient_RV
