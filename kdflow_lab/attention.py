"""Running a decoder over packed rows, with attention that stays within each row.

Rows lie end to end in one sequence `[1, S]`, so that no layer computes padding. For the attention
alone they are laid side by side in groups of a few fixed widths, and each group is one causal call
of `scaled_dot_product_attention`; a `[S, S]` mask never exists. It is registered with
`transformers` under `NAME` and gets its index through the keyword arguments that models pass on. A
model whose attention cannot be replaced runs the same rows padded.

The width of a group depends on nothing but the length of a row, so on a CPU a row's hidden states
are the same bits whatever it is packed with (a test holds it): rows of a cache are what the teacher
would compute again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "kdflow_packed"
SMALLEST_WIDTH = 32
"""Rows up to this length share a group: splitting them costs more calls than it saves padding."""
PLAIN_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of similar length, laid side by side.

    Attributes:
        tokens: Int64[count * width], the packed position of each place; padding repeats position 0.
        count: Rows.
        width: Places of each row.
    """

    tokens: Tensor
    count: int
    width: int


@dataclass(frozen=True, slots=True)
class PackedIndex:
    """Where each packed token lies in its row, and where when its row stands in its group.

    Attributes:
        groups: From short to long rows.
        places: Int64[S], each token's place in the groups' places, joined.
        positions: Int64[S], each token's position in its row.
    """

    groups: tuple[Group, ...]
    places: Tensor
    positions: Tensor

    @classmethod
    def of(
        cls, cu_seqlens: Tensor, device: torch.device | str = "cpu", *, one_group: bool = False
    ) -> PackedIndex:
        """Build the index.

        Args:
            cu_seqlens: Int32[n + 1] on the CPU: where each row starts, and S.
            device: Where the index is used.
            one_group: All rows side by side, padded to the longest.
        """
        starts = cu_seqlens.numpy().astype(np.int64)
        lengths = np.diff(starts)
        widths = np.full_like(lengths, lengths.max()) if one_group else _widths(lengths)
        places = np.empty(starts[-1], dtype=np.int64)
        groups, offset = [], 0
        for width in np.unique(widths).tolist():
            rows = np.flatnonzero(widths == width)
            tokens = starts[rows, None] + np.arange(width)
            real = np.arange(width) < lengths[rows, None]
            places[tokens[real]] = offset + np.flatnonzero(real)
            # padding stands behind its row, where no causal query of the row looks
            flat = torch.from_numpy(np.where(real, tokens, 0).ravel())
            groups.append(Group(flat.to(device), len(rows), width))
            offset += len(rows) * width
        positions = torch.from_numpy(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths))
        return cls(tuple(groups), torch.from_numpy(places).to(device), positions.to(device))


def _widths(lengths: np.ndarray) -> np.ndarray:
    """Round lengths up to 32, 48, 64, 96, 128, 192, …: padding is less than half of a row."""
    lengths = np.maximum(lengths, SMALLEST_WIDTH)
    power = 2 ** np.ceil(np.log2(lengths)).astype(np.int64)
    between = power // 4 * 3
    return np.where((lengths <= between) & (between >= SMALLEST_WIDTH), between, power)


def decode(
    decoder: Any, input_ids: Tensor, cu_seqlens: Tensor, *, packed: bool, pad_id: int
) -> Tensor:
    """Run a decoder over packed rows.

    Args:
        decoder: Of a `transformers` model (`model.get_decoder()`), on the ids' device.
        input_ids: Integer[S], rows end to end; S > 0.
        cu_seqlens: Int32[n + 1] on the CPU: where each row starts, and S.
        packed: Whether `use_packed_attention` was called on the model; else the rows are padded.
        pad_id: Any id of the vocabulary.

    Returns:
        Float[S, H], the hidden states behind the final norm.
    """
    index = PackedIndex.of(cu_seqlens, input_ids.device, one_group=not packed)
    ids = input_ids.long()
    if packed:
        return decoder(
            input_ids=ids[None],
            position_ids=index.positions[None],
            packed=index,
            use_cache=False,
        ).last_hidden_state[0]
    (group,) = index.groups
    mask = torch.zeros_like(group.tokens)
    mask[index.places] = 1
    beside = torch.where(mask.bool(), ids[group.tokens], pad_id)
    hidden = decoder(
        input_ids=beside.view(group.count, group.width),
        attention_mask=mask.view(group.count, group.width),
        use_cache=False,
    ).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, index.places)


def why_not_packed(model: Any) -> str:
    """Say why a `transformers` model cannot run packed rows; an empty string if it can."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not let its attention be replaced"
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - set(PLAIN_LAYERS)
    if others:
        return f"{name} has layers of the kind {', '.join(sorted(others))}"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{name} has attention sinks"
    return ""


def use_packed_attention(model: Any) -> None:
    """Let a model's attention take packed rows; `why_not_packed` must be empty."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)  # type: ignore[arg-type]
    model.set_attn_implementation(NAME)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedIndex,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each packed row; the signature is that of `transformers`' attention functions.

    Args:
        module: The attention layer.
        query: Float[1, heads, S, D].
        key: Float[1, key heads, S, D].
        value: Float[1, key heads, S, D].
        attention_mask: Not used: the index says what belongs together.
        packed: See `PackedIndex`.
        scaling: Multiplies the scores; 1/sqrt(D) if None.
        dropout: Share of the attention weights that are dropped.
        sliding_window: A query looks at most this many positions back, itself included.
        softcap: Scores become c * tanh(scores / c) (Gemma 2).

    Returns:
        Float[1, S, heads, D], and no weights.
    """
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    outputs = []
    for group in packed.groups:
        shape = (group.count, group.width)
        q, k, v = (
            states.index_select(0, group.tokens).unflatten(0, shape).transpose(1, 2)
            for states in (queries, keys, values)
        )
        if (repeats := q.shape[1] // k.shape[1]) > 1:
            k, v = (states.repeat_interleave(repeats, dim=1) for states in (k, v))
        output = _attend(q, k, v, scaling, dropout, sliding_window, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined.index_select(0, packed.places)[None], None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention over Float[n, heads, L, D]."""
    length = q.shape[-2]
    mask = None
    if (window is not None and window < length) or softcap is not None:
        position = torch.arange(length, device=q.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < (window or length))
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(q.dtype)  # type: ignore[operator]
    return F.dropout(weights, dropout) @ v
