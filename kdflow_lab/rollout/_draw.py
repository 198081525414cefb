"""From logits to token ids, by inverting the cumulative distribution at one number a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdflow_lab.errors import ModelError

if TYPE_CHECKING:
    from kdflow_lab.rollout.sampling import Sampling

BLOCK = 256
"""Tokens summed together: the walk first finds the block, then the token in it. Summing 32,000
probabilities one by one in float64 took ten times as long (measured), and float32 is too coarse."""
LIKELIEST = 1024
"""So many tokens mostly hold `top_p`; sorting the whole vocabulary is fifty times slower."""


def draw(logits: Tensor, uniforms: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: Float32[B, V], contiguous.
        uniforms: Float64[B] in [0, 1); None if the likeliest token is taken.
        sampling: How.

    Returns:
        Int64[B], the tokens, and Float32[B], the model's own log-probability of each, in nats.

    Raises:
        ModelError: Logits are not finite.
    """
    if uniforms is None:
        ids = logits.argmax(-1)
        return ids, _logprobs(logits, ids)
    if sampling.is_plain:
        probs = logits.softmax(-1)
        ids = invert(probs, uniforms)
        return ids, probs.gather(1, ids[:, None])[:, 0].log()
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    probs = scaled.softmax(-1)
    if sampling.has_filters:
        leave_out(probs, sampling)
    ids = invert(probs, uniforms)
    return ids, _logprobs(logits, ids)


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Find the token where the cumulative sum passes `uniforms` times the whole.

    Args:
        weights: Float32[B, V], not negative; need not sum to one.
        uniforms: Float64[B] in [0, 1 - 2**-52].

    Returns:
        Int64[B], tokens of positive weight.

    Raises:
        ModelError: Weights are not finite, or a row has none.
    """
    size = weights.shape[1]
    whole = size - size % BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, True, dtype=torch.float64)], dim=1)
    cumulative = sums.cumsum(-1)
    total = cumulative[:, -1]
    if not bool((torch.isfinite(total) & (total > 0)).all()):
        raise _not_finite()
    target = (uniforms * total)[:, None]
    block = torch.searchsorted(cumulative, target, right=True)
    before = cumulative.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    places = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, places.clamp(max=size - 1)).double() * (places < size)
    found = torch.searchsorted(inside.cumsum(-1), target - before, right=True)
    # the block's sum was added in another order and may be larger by a rounding
    last = (BLOCK - 1) - (inside.flip(1) > 0).int().argmax(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(found, last))[:, 0]


def leave_out(probs: Tensor, sampling: Sampling) -> None:
    """Set the probabilities of tokens that may not be drawn to zero, in place.

    Tokens as likely as the last one that is kept are kept, too.

    Args:
        probs: Float32[B, V], summing to one.
        sampling: `top_k`, `top_p` and `min_p`.
    """
    if 0 < sampling.top_k < probs.shape[1]:
        least = probs.topk(sampling.top_k, dim=-1).values[:, -1:]
        probs.masked_fill_(probs < least, 0.0)
    if sampling.top_p < 1:
        probs.masked_fill_(probs < _nucleus(probs, sampling.top_p), 0.0)
    if sampling.min_p > 0:
        probs.masked_fill_(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0.0)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Float32[B, 1]: the probability of the last token in the smallest set that holds `top_p`.

    Source: Holtzman et al., "The curious case of neural text degeneration", arXiv:1904.09751.
    """
    wanted = top_p * probs.sum(-1, keepdim=True)
    ordered = probs.topk(min(LIKELIEST, probs.shape[1]), dim=-1).values
    held = ordered.cumsum(-1)
    if bool((held[:, -1:] < wanted).any()):
        ordered = probs.sort(-1, descending=True).values
        held = ordered.cumsum(-1)
    last = (held < wanted).sum(-1, keepdim=True).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, last)


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Float32[B]: log-probabilities of `ids` Int64[B] under `logits` Float32[B, V], in nats."""
    logprobs = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)
    if not bool(torch.isfinite(logprobs).all()):
        raise _not_finite()
    return logprobs


def _not_finite() -> ModelError:
    return ModelError(
        "The model's logits are not finite, so no token can be drawn: its weights have diverged. "
        "Go back to an earlier checkpoint with a lower lr."
    )
