"""Decoding with the model's own cache and left padding, for models that `_packed` cannot take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PaddedRows:
    """As `PackedRows`; rows that have ended are computed until the last one has."""

    def __init__(self, model: Any) -> None:
        """Take a causal language model in eval mode."""
        self._decoder = model.get_decoder()
        self.device: torch.device = next(model.parameters()).device
        self._rows = torch.empty(0, dtype=torch.int64)  # those that are still written
        self._mask = torch.empty(0)
        self._cache: Any = None

    def prefill(self, prompts: Sequence[NDArray], copies: int, room: int) -> Tensor:
        """See `PackedRows.prefill`."""
        del room
        rows = [prompt for prompt in prompts for _ in range(copies)]
        width = max(len(prompt) for prompt in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(rows):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - len(prompt) :] = 1
        self._rows, self._mask = torch.arange(len(rows)), mask.to(self.device)
        self._cache = None
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        return self._run(ids.to(self.device), positions)

    def step(self, ids: Tensor) -> Tensor:
        """See `PackedRows.step`."""
        every = torch.zeros(self._mask.shape[0], dtype=torch.int64, device=self.device)
        every[self._rows] = ids
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        return self._run(every[:, None], self._mask.sum(-1, keepdim=True) - 1)[self._rows]

    def drop(self, ended: Sequence[int]) -> NDArray[np.int64]:
        """See `PackedRows.drop`."""
        left = np.delete(np.arange(len(self._rows)), list(ended))
        self._rows = self._rows[torch.from_numpy(left)]
        return left

    def forget(self) -> None:
        """See `PackedRows.forget`."""
        self._cache = None

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._decoder(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        return output.last_hidden_state[:, -1]
