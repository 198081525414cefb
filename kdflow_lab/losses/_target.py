"""What a block of the student's tokens is compared with, and how the student is seen for it.

Shape suffixes: R tokens of a block, V the student's vocabulary, W outcomes that are compared. With
one tokenizer the outcomes are the vocabulary itself. With two, they are the shared ids (`Columns`),
or the ids that can be reached and one bucket for all others (`Bucket`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class View(Protocol):
    """How the student's logits become logits of the outcomes, and the gradient comes back."""

    def of(self, z_RV: Tensor) -> Tensor:
        """Logits of the outcomes, Float[R, W], from the student's (divided by the temperature)."""
        ...

    def back(self, gradient_RW: Tensor, z_RV: Tensor) -> Tensor:
        """The gradient with respect to the student's logits, Float[R, V]."""
        ...


class Target(NamedTuple):
    """The teacher's side of a block.

    Attributes:
        logits: Float[R, W], overwritten by whoever reads them.
        scale: Float[R], multiplies the divergence; 0 leaves a token out. None: 1.
        view: How the student's logits are seen; None: as they are.
        top: Int64[R], the student's id of the teacher's most likely token, -1 for none; None: the
            largest of `logits`.
        tempered: Whether the logits are divided by the temperature already.
        masses: Whether they are no logits but masses, not negative and at most 1 in all, for
            `partial_forward_kl`.
    """

    logits: Tensor
    scale: Tensor | None = None
    view: View | None = None
    top: Tensor | None = None
    tempered: bool = False
    masses: bool = False

    def scaled(self, value_R: Tensor, factor: float) -> Tensor:
        """Scale and multiply a block's divergences; exactly 0 where a token is left out."""
        if self.scale is not None:
            value_R = torch.where(self.scale != 0, self.scale * value_R, 0.0)
        return factor * value_R


@dataclass(frozen=True, slots=True)
class Columns:
    """Only these ids: what both sides give them is renormalised."""

    ids: Tensor

    def of(self, z_RV: Tensor) -> Tensor:
        """See `View.of`."""
        return z_RV.index_select(1, self.ids)

    def back(self, gradient_RW: Tensor, z_RV: Tensor) -> Tensor:
        """See `View.back`."""
        return torch.zeros_like(z_RV).index_copy_(1, self.ids, gradient_RW)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The ids that the teacher can reach, and one outcome more for all the others together.

    Attributes:
        reached: Bool[R, V] or Bool[1, V].
    """

    reached: Tensor

    def of(self, z_RV: Tensor) -> Tensor:
        """Float[R, V + 1]: -inf at what cannot be reached, its log-sum-exp in the last column.

        Where everything can be reached the bucket is -inf: there is no such outcome.
        """
        listed = z_RV.masked_fill(~self.reached, -torch.inf)
        return torch.cat([listed, self._rest(z_RV)], dim=1)

    def back(self, gradient_RW: Tensor, z_RV: Tensor) -> Tensor:
        """The bucket's gradient is shared out by the student's own distribution in it."""
        within = (z_RV - self._rest(z_RV)).exp_().mul_(gradient_RW[:, -1:])
        return torch.where(self.reached, gradient_RW[:, :-1], within)

    def _rest(self, z_RV: Tensor) -> Tensor:
        """Log of the summed exponentials of the others, Float[R, 1]."""
        return z_RV.masked_fill(self.reached, -torch.inf).logsumexp(dim=1, keepdim=True)
