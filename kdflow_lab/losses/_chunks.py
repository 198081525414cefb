"""How much is held at once: the rows of a chunk and of a block, from a budget in bytes.

A chunk are the rows whose logits are held, both models' in their compute dtype; the student's
become its gradient in place. What is computed from them is computed for a few rows at a time, a
block, whose float32 tensors stay in the processor's cache on their way through a dozen operations.
So a divergence may make as many temporaries as it likes: they are of a block, never of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from kdflow_lab.errors import ConfigError

CPU_BUDGET_BYTES = 360_000_000
"""What `chunk_tokens="auto"` may hold beside the gradients: at 151,936 ids and float32 that is 256
rows, and the matrix products of 256 rows or more run near their peak rate."""
GPU_BUDGET_BYTES = 1_500_000_000
CPU_MOST_ROWS = 512
"""Rows of a chunk of `auto` on a CPU: more make no product faster, and only take memory."""
CPU_BLOCK_ELEMENTS = 1 << 20
"""Of one tensor of a block: 4 MiB in float32, so that a handful stay in the last-level cache."""
GPU_BLOCK_ELEMENTS = 1 << 23
TEMPORARIES = 16
"""Tensors of a block that a divergence with its gradient may hold, at most, beside the logits."""
RESERVED_BYTES = 16_000_000
"""What the matrix products take for themselves."""
MULTIPLE = 16
"""Rows of a chunk are a multiple of this, which the products' kernels like."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """Rows of a chunk and of a block."""

    chunk_tokens: int
    block_tokens: int

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """Yield the slices of a walk over `num_tokens` rows."""
        return slices(num_tokens, self.chunk_tokens)

    def blocks(self, num_tokens: int) -> Iterator[slice]:
        """Yield the slices of a walk over the rows of a chunk."""
        return slices(num_tokens, self.block_tokens)


def slices(num_rows: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` rows that cover `num_rows`."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def plan(
    chunk_tokens: int | Literal["auto"],
    *,
    num_tokens: int,
    width: int,
    row_bytes: int,
    element_bytes: int = 4,
    temporaries: int = TEMPORARIES,
    extra_bytes: int = 0,
    device: torch.device,
) -> Chunking:
    """Choose the rows of a chunk and of a block.

    Args:
        chunk_tokens: Rows of a chunk, or `auto` to fill the budget.
        num_tokens: Rows in all; the chunks of `auto` are about equal.
        width: Columns of the logits.
        row_bytes: Bytes that a row of a chunk takes: both models' logits.
        element_bytes: Of a number of a block.
        temporaries: Tensors of a block that exist at once.
        extra_bytes: Held beside the chunk, such as the gradient of the hidden states; at most an
            eighth of the budget is taken from the chunk for it.
        device: Where it is computed.

    Raises:
        ConfigError: `chunk_tokens` is less than 1.
    """
    on_cpu = device.type == "cpu"
    elements = CPU_BLOCK_ELEMENTS if on_cpu else GPU_BLOCK_ELEMENTS
    block_tokens = max(1, elements * 4 // (max(1, width) * element_bytes))
    if chunk_tokens != "auto":
        if chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens is {chunk_tokens}; expected at least 1, or 'auto'.")
        return Chunking(chunk_tokens, min(block_tokens, chunk_tokens))
    budget = CPU_BUDGET_BYTES if on_cpu else GPU_BUDGET_BYTES
    block_bytes = block_tokens * width * element_bytes * temporaries
    left = budget - RESERVED_BYTES - min(extra_bytes, budget // 8) - block_bytes
    most = max(block_tokens, left // max(1, row_bytes))
    if on_cpu:
        most = max(block_tokens, min(most, CPU_MOST_ROWS))
    num_chunks = max(1, -(-num_tokens // most))
    even = -(-num_tokens // num_chunks)
    rounded = -(-even // MULTIPLE) * MULTIPLE
    rows = max(1, rounded if rounded <= most else most // MULTIPLE * MULTIPLE or most)
    return Chunking(rows, min(block_tokens, rows))
