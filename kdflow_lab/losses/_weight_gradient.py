"""The gradient of a head's weight, summed over chunks: as large as the head, and held once.

Shape suffixes: C tokens of a chunk, H hidden, V rows of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.losses._chunks import slices

BLOCK_ROWS = 4096
"""Rows of the head whose product is held in the compute dtype before it is added in float32."""
NARROW_ELEMENTS = 1 << 21


class WeightGradient:
    """Sums `grad.T @ hidden` in float32 (float64 for float64), whatever the products' dtype is."""

    def __init__(self, weight: Tensor, width: int, compute: torch.dtype, num_chunks: int) -> None:
        """Make room for the sum.

        Args:
            weight: Float[rows, H], of the head.
            width: Rows that take part; the others' gradient is zero.
            compute: Of the products.
            num_chunks: Calls of `add` to come. A single product needs no wider sum.
        """
        self._dtype = weight.dtype
        dtype = torch.float32 if num_chunks > 1 and compute.itemsize < 4 else compute
        # not zeroed: the first chunk writes
        self._total = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        self._total[width:].zero_()
        self._width = width
        self._empty = True

    def add(self, grad_CV: Tensor, hidden_CH: Tensor) -> None:
        """Add a chunk's product."""
        total_VH = self._total[: self._width]
        if total_VH.dtype == grad_CV.dtype:
            if self._empty:
                torch.mm(grad_CV.t(), hidden_CH, out=total_VH)
            else:
                total_VH.addmm_(grad_CV.t(), hidden_CH)
        else:
            # block by block, so that the product in the narrow dtype is small and still in cache
            for rows in slices(self._width, BLOCK_ROWS):
                product = grad_CV[:, rows].t() @ hidden_CH
                if self._empty:
                    total_VH[rows].copy_(product)
                else:
                    total_VH[rows].add_(product)
        self._empty = False

    def result(self) -> Tensor:
        """The sum in the weight's dtype; call it once."""
        if self._empty:
            self._total.zero_()
        if self._total.dtype.itemsize > self._dtype.itemsize:
            return narrowed(self._total, self._dtype)
        return self._total.to(self._dtype)


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a contiguous tensor to a smaller dtype in its own memory: its values are gone.

    The result lies at the start of the same storage, so that the two never exist side by side.
    """
    flat = tensor.view(-1)
    result = torch.empty(0, dtype=dtype, device=tensor.device)
    result.set_(tensor.untyped_storage(), 0, tensor.shape, tensor.stride())
    out = result.view(-1)
    for part in slices(flat.numel(), NARROW_ELEMENTS):
        # a number is read before its place is written, since its new place is never further on
        out[part].copy_(flat[part].to(dtype))
    return result
