"""The most likely token of every row, a chunk of logits at a time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses.head import Head


@torch.no_grad()
def top_tokens(hidden: Tensor, head: Head, chunk_tokens: int | Literal["auto"] = "auto") -> Tensor:
    """Int64[T] for hidden states Float[T, H].

    Raises:
        ShapeError: The hidden size is not the head's.
    """
    head.check(hidden)
    chunking = plan(
        chunk_tokens,
        num_tokens=len(hidden),
        width=head.width,
        row_bytes=head.width * (4 + hidden.dtype.itemsize),
        device=hidden.device,
    )
    tops = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for rows in chunking.chunks(len(hidden)):
        tops[rows] = head.logits(hidden[rows]).argmax(dim=-1)
    return tops
