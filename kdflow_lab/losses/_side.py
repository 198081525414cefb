"""One model's rows and head, ready for products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdflow_lab.losses.head import Head


@dataclass(frozen=True, slots=True)
class Side:
    """One model's rows and head, ready for products: all in one dtype, cut to the vocabulary.

    Shape suffixes: T tokens, C tokens of a chunk, H hidden, V vocabulary, K rank of an adapter.

    Attributes:
        hidden: Float[T, H].
        weight: Float[V, H].
        bias: Float[V] or None.
        inner: Float[T, K], the adapter's first product, or None.
        outer: Float[V, K], the adapter's second factor, or None.
        head: For scale and soft-cap.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    inner: Tensor | None
    outer: Tensor | None
    head: Head

    @classmethod
    def of(cls, hidden: Tensor, head: Head, inner: Tensor | None = None) -> Side:
        """Put a model's rows and head together; casts the head once if its dtype is another."""
        width, dtype = head.width, hidden.dtype
        outer = None
        if head.adapter is not None:
            inner = head.adapter.inner(hidden) if inner is None else inner
            outer = head.adapter.b.detach()[:width].to(dtype)
        bias = None if head.bias is None else head.bias.detach()[:width].to(dtype)
        weight = head.weight.detach()[:width].to(dtype)
        return cls(
            hidden.detach(), weight, bias, None if inner is None else inner.detach(), outer, head
        )

    def products(self, chunk_tokens: int) -> Tensor:
        """Room for the products of a chunk, Float[C, V], with whatever is in it."""
        width = self.weight.shape[0]
        return torch.empty(chunk_tokens, width, dtype=self.hidden.dtype, device=self.hidden.device)

    def logits_into(self, out_CV: Tensor, rows: slice | Tensor) -> None:
        """Write the products of some rows, before scale and soft-cap."""
        if self.bias is None:
            torch.mm(self.hidden[rows], self.weight.t(), out=out_CV)
        else:
            torch.addmm(self.bias, self.hidden[rows], self.weight.t(), out=out_CV)
        if self.inner is not None and self.outer is not None:
            out_CV.addmm_(self.inner[rows], self.outer.t())
