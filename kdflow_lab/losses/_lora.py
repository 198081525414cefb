"""A LoRA adapter on a head, as PEFT wraps one: a frozen weight plus a trained product of two.

The chunked loss never forms the sum: logits = h W.T + (scale h A.T) B.T, so that A and B get their
gradients and the frozen weight costs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab.errors import ModelError


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to the weight: `b @ a`, the scale being in `a` already.

    Attributes:
        a: Float[R, H], scaled.
        b: Float[rows, R].
        dropout: Share of the hidden states' entries left out before `a`, while training.
    """

    a: Tensor
    b: Tensor
    dropout: float = 0.0

    def inner(self, hidden_TH: Tensor) -> Tensor:
        """Float[T, R], in the hidden states' dtype; differentiable in them and in `a`."""
        if self.dropout:
            hidden_TH = F.dropout(hidden_TH, self.dropout)
        return F.linear(hidden_TH, self.a.to(hidden_TH.dtype))

    def added_to(self, weight: Tensor) -> Tensor:
        """Merge it into the weight it adapts: `W + B A` in float32, in the weight's dtype.

        Args:
            weight: Float[rows, H], the rows that `b` has.
        """
        merged = weight.detach().float() + self.b.detach().float() @ self.a.detach().float()
        return merged.to(weight.dtype)

    def to(self, device: torch.device | str) -> Adapter:
        """Return the same adapter on another device."""
        return Adapter(self.a.to(device), self.b.to(device), self.dropout)


def adapter_of(module: Any) -> Adapter | None:
    """Read the active LoRA adapters of a head; None if it has none, or they are merged.

    Raises:
        ModelError: It is adapted in another way than by plain LoRA.
    """
    if not hasattr(module, "base_layer"):
        return None
    if getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return None
    kind = type(module).__name__
    if not hasattr(module, "lora_A") or not hasattr(module, "lora_B"):
        raise ModelError(f"The head is adapted by {kind}; only LoRA is known on a head.")
    active = [name for name in module.active_adapters if name in module.lora_A]
    if not active:
        return None
    variants = getattr(module, "use_dora", {})
    if any(variants.get(name) for name in active):
        raise ModelError("The head is adapted by DoRA; only plain LoRA is known on a head.")
    if any(getattr(module.lora_B[name], "bias", None) is not None for name in active):
        raise ModelError("The head's LoRA has a bias; only LoRA without one is known on a head.")
    dropouts = {_dropout(module, name) for name in active}
    if len(dropouts) > 1:
        raise ModelError("The head's LoRA adapters differ in their dropout; expected the same.")
    a = [module.lora_A[name].weight * module.scaling[name] for name in active]
    b = [module.lora_B[name].weight for name in active]
    if len(active) == 1:
        return Adapter(a[0], b[0], dropouts.pop())
    return Adapter(torch.cat(a, dim=0), torch.cat(b, dim=1), dropouts.pop())


def _dropout(module: Any, name: str) -> float:
    """The dropout before an adapter, which is only there while training."""
    layers = getattr(module, "lora_dropout", {})  # a ModuleDict, which has no `get`
    return float(getattr(layers[name], "p", 0.0)) if module.training and name in layers else 0.0
