"""Values and gradient of a few tokens, from both models' logits.

Shape suffixes: R tokens of a block, V vocabulary. One implementation for every divergence: its
function runs under autograd on the block. Where `_in_place` has a closed form, that is used
instead. Cross-entropy and top tokens come from the same logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._apart import take_apart
from kdflow_lab.losses._in_place import partial_forward_kl, softmax_into, top_token
from kdflow_lab.losses._target import Target
from kdflow_lab.losses._terms import IN_PLACE, Terms

STUDENT, SLOPE, COLD, WARM, SCRATCH = range(5)
"""Numbers of a block's tensors: the student's logits, slope of a soft-cap, softmax at temperature 1
and at the divergence's, and one that a closed form may use."""


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
    z_RV: Tensor, target: Target | None, labels_R: Tensor | None, terms: Terms, block: Block
) -> Found:
    """Compute a block's values; the gradient of its loss takes the place of `z`.

    Args:
        z_RV: The student's logits; overwritten.
        target: The teacher's side, or None; overwritten.
        labels_R: Int64[R], or None.
        terms: What is computed.
        block: Tensors to work in.
    """
    kd_R = ce_R = agreement_R = kd_gradient_RV = cold_RV = log_sum_R = None
    apart = target is not None and (target.view is not None or not terms.closed_form)
    if target is not None and apart:
        kd_R, kd_gradient_RV = take_apart(z_RV, target, terms)
    largest_R1, top_R1 = top_token(z_RV)
    z_RV.sub_(largest_R1)
    if target is not None:
        teachers_top_R = target.top
        if teachers_top_R is None or not apart:
            teachers_largest_R1, top_of_logits_R1 = top_token(target.logits)
            teachers_top_R = top_of_logits_R1[:, 0] if teachers_top_R is None else teachers_top_R
            if not target.masses:
                target.logits.sub_(teachers_largest_R1)
        same_R = top_R1[:, 0] == teachers_top_R
        agreement_R = (same_R if target.scale is None else same_R & (target.scale > 0)).to(
            z_RV.dtype
        )
    if labels_R is not None:
        cold_RV = block.tensor(len(z_RV), COLD)
        log_sum_R = softmax_into(z_RV, cold_RV)
        ce_R = log_sum_R - z_RV.gather(1, labels_R[:, None])[:, 0]
    if target is not None and not apart:
        kd_R, cold_RV = _in_closed_form(z_RV, target, cold_RV, log_sum_R, terms, block)
    elif kd_gradient_RV is not None:
        weight = terms.kd_weight * terms.factor
        if target is not None and target.scale is not None:
            weight = weight * target.scale[:, None]
        torch.mul(kd_gradient_RV, weight, out=z_RV)
    elif terms.wants_gradient:
        z_RV.zero_()
    if labels_R is not None and terms.learns_labels:
        add_labels(z_RV, cold_RV, labels_R, terms.ce_weight)
    return Found(kd_R, ce_R, agreement_R)


def _in_closed_form(
    z_RV: Tensor,
    target: Target,
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
        if not (target.tempered or target.masses):
            target.logits.div_(terms.temperature)
    if warm_RV is None or log_warm_R is None or terms.temperature != 1.0:
        warm_RV = block.tensor(len(z_RV), WARM)
        log_warm_R = softmax_into(z_RV, warm_RV)
    scratch_RV = block.tensor(len(z_RV), SCRATCH)
    closed_form = partial_forward_kl if target.masses else IN_PLACE[terms.divergence]
    found = closed_form(z_RV, target.logits, warm_RV, log_warm_R, scratch_RV, **terms.params)
    if terms.wants_gradient:
        weight = terms.kd_weight * terms.factor / terms.temperature
        if target.scale is not None:
            weight = weight * target.scale
        ours_R = weight * found.ours
        if warm_RV is cold_RV:
            ours_R = ours_R + terms.ce_weight
            cold_RV = None
        torch.mul(warm_RV, ours_R[:, None], out=z_RV)
        z_RV.addcmul_(found.x, (weight * found.theirs)[:, None])
    return target.scaled(found.value, terms.factor), cold_RV


def add_labels(
    gradient_RV: Tensor, softmax_RV: Tensor | None, labels_R: Tensor, weight: float | Tensor
) -> None:
    """Add the cross-entropy's gradient, weight * (softmax - label); None: the softmax is in it."""
    if isinstance(weight, Tensor):
        if softmax_RV is not None:
            gradient_RV.addcmul_(softmax_RV, weight[:, None])
        less_R1 = -weight[:, None].to(gradient_RV.dtype)
    else:
        if softmax_RV is not None:
            gradient_RV.add_(softmax_RV, alpha=weight)
        less_R1 = gradient_RV.new_full((len(gradient_RV), 1), -weight)
    gradient_RV.scatter_add_(1, labels_R[:, None], less_R1)
