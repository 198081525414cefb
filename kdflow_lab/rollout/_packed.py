"""Prefill and decoding of a `transformers` model over rows of any length, with no padding.

Rows lie end to end in one sequence `[1, S]`, as in `kdflow_lab.attention`: prompts when they are
read, one token of each row when answers are written. Only attention knows of rows. It is registered
with `transformers` under `NAME` and keeps keys and values itself: each row has its own place and
length in the cache, so a row that ends is dropped by moving the last one into its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdflow_lab.attention import PackedIndex, packed_attention, why_not_packed

NAME = "kdflow_rollout"
PREFILL_TOKENS = 8192
"""Prompt tokens that are run together."""


def why_not(model: Any) -> str:
    """Say why a model cannot be decoded in this way; an empty string if it can."""
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):
        return f"{type(model).__name__} shares keys and values between layers"
    return why_not_packed(model)


class PackedRows:
    """Keys and values of the rows that are being written, and the passes over them."""

    def __init__(self, model: Any) -> None:
        """Take over a model's attention.

        Args:
            model: A causal language model in eval mode for which `why_not` is empty.
        """
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _attention)  # type: ignore[arg-type]
        model.set_attn_implementation(NAME)
        self._decoder = model.get_decoder()
        self.device: torch.device = next(model.parameters()).device
        self._memory: dict[tuple[int, str], Tensor] = {}  # kept between batches: pages stay warm
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._shape = (0, 0)  # rows and places of the cache
        self.lengths: NDArray[np.int64] = np.empty(0, np.int64)
        """Tokens of each row whose keys and values are in the cache."""
        self.index: PackedIndex | None = None
        self._places: tuple[Tensor, Tensor] | None = None
        self._masks: dict[int | None, Tensor | None] = {}

    def prefill(self, prompts: Sequence[NDArray], copies: int, room: int) -> Tensor:
        """Read prompts; each becomes `copies` rows, one after another.

        Args:
            prompts: Integer[length] each, none empty.
            copies: Rows of each prompt.
            room: Tokens that will be written behind each.

        Returns:
            Float[prompts * copies, H], the final-norm hidden state of each row's last token.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._shape = (len(prompts) * copies, int(lengths.max()) + room)
        self._layers.clear()
        hidden, first = [], 0
        while first < len(prompts):
            stop = first + 1
            while stop < len(prompts) and lengths[first : stop + 1].sum() <= PREFILL_TOKENS:
                stop += 1
            hidden.append(self._read(prompts[first:stop], lengths[first:stop], first, copies))
            first = stop
        self.lengths = np.repeat(lengths, copies)
        if copies > 1:
            for states in self._layers.values():
                for one in states:
                    of_prompt = one.unflatten(0, (-1, copies))[:, :, :, : int(lengths.max())]
                    of_prompt[:, 1:] = of_prompt[:, :1]
        return torch.cat(hidden).repeat_interleave(copies, dim=0)

    def step(self, ids: Tensor) -> Tensor:
        """Write one more token of each row.

        Args:
            ids: Int64[B].

        Returns:
            Float[B, H], its final-norm hidden state.
        """
        rows = len(self.lengths)
        places = torch.from_numpy(self.lengths).to(self.device)
        self._places = torch.arange(rows, device=self.device), places
        self._masks.clear()
        self.index = None
        hidden = self._run(ids, places)
        self.lengths = self.lengths + 1
        return hidden

    def drop(self, ended: Sequence[int]) -> NDArray[np.int64]:
        """Drop rows; the last ones move into their places.

        Args:
            ended: Which.

        Returns:
            Int64[rows left]: which row now stands at each place.
        """
        rows = len(self.lengths)
        left = rows - len(ended)
        order = np.arange(rows)
        holes = [row for row in ended if row < left]
        movers = [row for row in range(left, rows) if row not in set(ended)]
        order[holes] = movers
        order = order[:left]
        if holes:
            width = int(self.lengths[movers].max())
            for states in self._layers.values():
                for one in states:
                    for hole, mover in zip(holes, movers, strict=True):
                        one[hole, :, :width] = one[mover, :, :width]
        self._layers = {
            number: (keys[:left], values[:left]) for number, (keys, values) in self._layers.items()
        }
        self.lengths = self.lengths[order]
        return order

    def forget(self) -> None:
        """Give the memory up, since what is left in it may not be finite."""
        self._memory.clear()
        self._layers.clear()

    def _read(
        self, prompts: Sequence[NDArray], lengths: NDArray[np.int64], first: int, copies: int
    ) -> Tensor:
        """Run some prompts at once; Float[prompts, H] of their last tokens."""
        ends = np.concatenate([[0], lengths.cumsum()])
        self.index = PackedIndex.of(torch.from_numpy(ends.astype(np.int32)), self.device)
        rows = torch.from_numpy((first + np.arange(len(prompts))).repeat(lengths) * copies)
        self._places = rows.to(self.device), self.index.positions
        ids = torch.from_numpy(np.concatenate(prompts).astype(np.int64)).to(self.device)
        hidden = self._run(ids, self.index.positions)
        return hidden[torch.from_numpy(ends[1:] - 1).to(self.device)]

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._decoder(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, rows=self
        ).last_hidden_state[0]

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put a pass's keys and values, Float[1, heads, S, D] each, where they belong.

        Returns:
            The layer's keys and values, Float[rows, heads, places, D].
        """
        if layer not in self._layers:
            self._layers[layer] = self._room(layer, "k", key), self._room(layer, "v", value)
        assert self._places is not None
        rows, places = self._places
        for states, new in zip(self._layers[layer], (key, value), strict=True):
            states[rows, :, places] = new[0].transpose(0, 1)
        return self._layers[layer]

    def _room(self, layer: int, name: str, like: Tensor) -> Tensor:
        """Float[rows, heads, places, D] of memory that earlier batches used, if it is enough."""
        rows, places = self._shape
        _, heads, _, size = like.shape
        needed = rows * heads * places * size
        memory = self._memory.get((layer, name))
        if memory is None or memory.numel() < needed or memory.dtype != like.dtype:
            # finite everywhere: a place that is masked still counts as zero times what is there
            memory = torch.zeros(needed, dtype=like.dtype, device=like.device)
            self._memory[layer, name] = memory
        return memory[:needed].view(rows, heads, places, size)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What may not be looked at in a step: Float[B, 1, 1, width], 0 or -inf; None for nothing.

        Args:
            window: A query looks at most this many positions back, itself included.
            dtype: Of the queries.
        """
        longest = int(self.lengths.max())
        if window is not None and window > longest:
            window = None
        if window not in self._masks:
            last = torch.from_numpy(self.lengths).to(self.device)[:, None]
            at = torch.arange(longest + 1, device=self.device)[None]
            hidden = at > last
            if window is not None:
                hidden |= at <= last - window
            elif bool((self.lengths == longest).all()):
                self._masks[window] = None
                return None
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
            self._masks[window] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._masks[window]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: PackedRows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each row; see `kdflow_lab.attention.packed_attention`."""
    keys, values = rows.keep(module.layer_idx, key, value)
    if rows.index is not None:
        return packed_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            packed=rows.index,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
        )
    width = int(rows.lengths.max()) + 1
    keys, values = keys[:, :, :width], values[:, :, :width]
    mask = rows.mask(sliding_window, query.dtype)
    # heads that share keys stand side by side as queries, so that no key is repeated
    q = query[0].transpose(0, 1).unflatten(1, (keys.shape[1], -1))
    if softcap is None:
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scaling)
    else:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.tanh(q @ keys.transpose(-1, -2) * (scale / softcap)) * softcap
        scores = scores if mask is None else scores + mask
        out = scores.float().softmax(-1).to(q.dtype) @ values
    return out.flatten(1, 2)[None], None
