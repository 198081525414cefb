"""What the walk computes of a token, and which divergences have a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kdflow_lab.losses._in_place import InPlace, forward_kl, reverse_kl
from kdflow_lab.losses._in_place_mixture import MIXTURES

IN_PLACE: dict[str, Callable[..., InPlace]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    **MIXTURES,
}
"""The divergences that have a closed form; all others run under autograd."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is computed of a token.

    Attributes:
        divergence: Full name.
        params: Checked parameters of the divergence.
        temperature: Divides both logits in the divergence.
        factor: Multiplies the divergence.
        ce_weight: Of a token's cross-entropy in the loss; 0: no gradient of it. Float[T] where
            tokens differ in it.
        kd_weight: Of a token's divergence in the loss; 0: no gradient of it.
        in_place: Use a closed form where there is one.
        function: Instead of the divergence: of the student's and the teacher's logits, Float[R, V]
            and Float[R, W], divided by the temperature, to Float[R].
    """

    divergence: str = "forward_kl"
    params: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    factor: float = 1.0
    ce_weight: float | Tensor = 0.0
    kd_weight: float = 0.0
    in_place: bool = True
    function: Callable[[Tensor, Tensor], Tensor] | None = None

    def at(self, tokens: slice) -> Terms:
        """The terms of some of the tokens."""
        if not isinstance(self.ce_weight, Tensor):
            return self
        return replace(self, ce_weight=self.ce_weight[tokens])

    @property
    def closed_form(self) -> bool:
        """Whether no autograd is needed."""
        return self.in_place and self.function is None and self.divergence in IN_PLACE

    @property
    def wants_gradient(self) -> bool:
        """Whether a gradient is computed at all."""
        return self.learns_labels or self.kd_weight != 0.0

    @property
    def learns_labels(self) -> bool:
        """Whether the cross-entropy has a gradient."""
        return isinstance(self.ce_weight, Tensor) or self.ce_weight != 0.0
