"""The teacher's side of the walk: which of its rows a student's token is compared with.

Shape suffixes: T the student's response tokens, U the teacher's, C tokens of a chunk, R of a block,
X columns of the teacher's head.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdflow_lab.losses._side import Side
from kdflow_lab.losses._target import Target


class Teacher(Protocol):
    """Hands out the target of every block, chunk by chunk.

    Attributes:
        width: Columns of its products.
        row_bytes: What a row of a chunk takes.
        device: Where its rows are.
    """

    width: int
    row_bytes: int
    device: torch.device

    def hold(self, chunk_tokens: int, block_tokens: int, dtype: torch.dtype) -> None:
        """Make room for a chunk's products and a block in `dtype`; the walk calls it first."""
        ...

    def take_chunk(self, rows: slice) -> None:
        """Compute the products that some of the student's tokens need."""
        ...

    def target(self, part: slice, tokens: slice) -> Target:
        """The target of tokens `tokens`, which are rows `part` of the chunk."""
        ...


class SameRows:
    """One tokenizer: row by row, column by column."""

    def __init__(self, side: Side) -> None:
        """Take the teacher's rows and head."""
        self.side = side
        self.width = side.weight.shape[0]
        self.row_bytes = self.width * side.hidden.dtype.itemsize
        self.device = side.hidden.device

    def hold(self, chunk_tokens: int, block_tokens: int, dtype: torch.dtype) -> None:
        """See `Teacher.hold`."""
        self._products_CX = self.side.products(chunk_tokens)
        self._lifted_RX = None
        if dtype != self.side.hidden.dtype:
            self._lifted_RX = torch.empty(block_tokens, self.width, dtype=dtype, device=self.device)

    def take_chunk(self, rows: slice) -> None:
        """See `Teacher.take_chunk`."""
        self.side.logits_into(self._products_CX[: rows.stop - rows.start], rows)

    def target(self, part: slice, tokens: slice) -> Target:
        """See `Teacher.target`."""
        t_RX = self._products_CX[part]
        if self._lifted_RX is not None:
            t_RX = self._lifted_RX[: len(t_RX)].copy_(t_RX)
        self.side.head.transform_(t_RX)
        return Target(t_RX)


class TargetMap(Protocol):
    """Turns the teacher's logits of a block into its target."""

    def __call__(self, t_RX: Tensor, tokens: slice, kept_R: Tensor) -> Target:
        """Make the target.

        Args:
            t_RX: Float[R, X], of the teacher's rows that belong to the tokens; may be overwritten.
            tokens: Which tokens these are.
            kept_R: Float[R], 1 where a token has a row, else 0: its logits are 0, and so must its
                scale be.
        """
        ...


class PairedRows:
    """Two tokenizers: a token is compared with the row of a given number, or with none.

    A row that several tokens of a chunk share is computed once.
    """

    def __init__(self, side: Side, index: NDArray[np.int64], map_target: TargetMap) -> None:
        """Take the teacher's rows and head.

        Args:
            side: Of the teacher.
            index: Int64[T], number of the row, -1 for none.
            map_target: Makes the target from the rows.
        """
        self.side = side
        self.width = side.weight.shape[0]
        self.row_bytes = self.width * side.hidden.dtype.itemsize
        self.device = side.hidden.device
        self._index, self._map = index, map_target

    def hold(self, chunk_tokens: int, block_tokens: int, dtype: torch.dtype) -> None:
        """See `Teacher.hold`."""
        self._products_CX = self.side.products(chunk_tokens)
        self._chosen_RX = self.side.products(block_tokens)
        self._lifted_RX = self._chosen_RX
        if dtype != self._chosen_RX.dtype:
            self._lifted_RX = torch.empty_like(self._chosen_RX, dtype=dtype)

    def take_chunk(self, rows: slice) -> None:
        """See `Teacher.take_chunk`."""
        index = self._index[rows]
        self._kept = index >= 0
        wanted, place = np.unique(index[self._kept], return_inverse=True)
        at = np.zeros(len(index), np.int64)
        at[self._kept] = place
        self._at_C = torch.from_numpy(at).to(self.device)
        if len(wanted):
            chosen = torch.from_numpy(wanted).to(self.device)
            self.side.logits_into(self._products_CX[: len(wanted)], chosen)

    def target(self, part: slice, tokens: slice) -> Target:
        """See `Teacher.target`."""
        kept = self._kept[part]
        # written to tensors that are there already: new ones cost more than the copy
        chosen_RX, t_RX = self._chosen_RX[: len(kept)], self._lifted_RX[: len(kept)]
        torch.index_select(self._products_CX, 0, self._at_C[part], out=chosen_RX)
        if t_RX is not chosen_RX:
            t_RX.copy_(chosen_RX)
        without = torch.from_numpy(np.flatnonzero(~kept)).to(self.device)
        t_RX.index_fill_(0, without, 0.0)
        self.side.head.transform_(t_RX)
        return self._map(t_RX, tokens, torch.from_numpy(kept).to(t_RX))
