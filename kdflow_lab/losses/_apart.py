"""A divergence by itself, its gradient beside the student's logits instead of over them.

For what `_block` cannot write in place: divergences without a closed form, and targets that see the
student's logits in another way. Shape suffixes as in `_target`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdflow_lab.losses._divergences import per_token_value
from kdflow_lab.losses._in_place import softmax_into
from kdflow_lab.losses._target import Target
from kdflow_lab.losses._terms import IN_PLACE, Terms


def take_apart(z_RV: Tensor, target: Target, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Values, scaled as the target says, and the gradient of the unscaled ones, if it is wanted.

    Args:
        z_RV: The student's logits; they stay as they are.
        target: Its logits stay too.
        terms: What is computed.
    """
    temperature = terms.temperature
    y_RV = z_RV if temperature == 1.0 else z_RV / temperature
    as_is = temperature == 1.0 or target.tempered or target.masses
    t_RW = target.logits if as_is else target.logits / temperature
    y_RW = y_RV if target.view is None else target.view.of(y_RV)
    if target.masses:
        value_R, gradient = _under_autograd(y_RW, t_RW, replace(terms, function=_of_masses))
    elif terms.closed_form:
        value_R, gradient = _in_closed_form(y_RW, t_RW, terms)
    else:
        value_R, gradient = _under_autograd(y_RW, t_RW, terms)
    if gradient is not None:
        if target.view is not None:
            gradient = target.view.back(gradient, y_RV)
        if temperature != 1.0:
            gradient = gradient / temperature
    return target.scaled(value_R, terms.factor), gradient


def _of_masses(y_RW: Tensor, t_RW: Tensor) -> Tensor:
    """`partial_forward_kl` under autograd."""
    logq_RW = y_RW.log_softmax(dim=-1).masked_fill(t_RW == 0, 0.0)
    return (torch.special.xlogy(t_RW, t_RW) - t_RW * logq_RW).sum(dim=-1)


def _under_autograd(y_RW: Tensor, t_RW: Tensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Any divergence: its values, and its gradient if that is wanted."""
    wanted = terms.kd_weight != 0.0
    leaf_RW = y_RW.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        if terms.function is not None:
            value_R = terms.function(leaf_RW, t_RW.detach())
        else:
            value_R = per_token_value(terms.divergence, leaf_RW, t_RW, 1.0, terms.params)
    gradient_RW = None
    if wanted:
        (gradient_RW,) = torch.autograd.grad(value_R, leaf_RW, torch.ones_like(value_R))
    return value_R.detach(), gradient_RW


def _in_closed_form(y_RW: Tensor, t_RW: Tensor, terms: Terms) -> tuple[Tensor, Tensor | None]:
    """The same by a closed form, in tensors of its own."""
    y_RW = y_RW - y_RW.amax(dim=-1, keepdim=True)
    t_RW = t_RW - t_RW.amax(dim=-1, keepdim=True)
    q_RW = torch.empty_like(y_RW)
    log_sum_R = softmax_into(y_RW, q_RW)
    scratch_RW = torch.empty_like(y_RW)
    found = IN_PLACE[terms.divergence](y_RW, t_RW, q_RW, log_sum_R, scratch_RW, **terms.params)
    gradient_RW = None
    if terms.kd_weight != 0.0:
        gradient_RW = q_RW.mul_(found.ours[:, None])
        gradient_RW.addcmul_(found.x, found.theirs[:, None])
    return found.value, gradient_RW
