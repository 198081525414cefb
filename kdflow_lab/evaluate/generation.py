"""Batched answers of a plain `transformers` model, token ids in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids; any lengths, none empty.
        pad_id: Fills prompts up on the left; masked, so any id will do.
        stop_ids: The answer ends before the first of these.
        max_new_tokens: Longest answer; one that reaches it is cut.
        temperature: 0 takes the likeliest token; above 0 samples from the whole distribution.
        seed: Of the sampling; each batch draws from a generator of its own.
        batch_size: Prompts run together, of similar length.
        on_batch: Called with (prompts done, prompts in all).

    Returns:
        One list of new token ids a prompt, in the order of `prompts`, without the stop id.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[row]) for row in rows)
        input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for line, row in enumerate(rows):
            prompt = torch.tensor(prompts[row], dtype=torch.int64)
            input_ids[line, width - len(prompt) :] = prompt
            mask[line, width - len(prompt) :] = 1
        torch.manual_seed(seed + start)
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            use_cache=True,
            synced_gpus=False,  # ranks answer rows of their own, and not equally many
            **sampling,
        )
        for line, row in enumerate(rows):
            answers[row] = _until_stop(output[line, width:].tolist(), stop_ids)
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    return answers


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Cut at the first stop id."""
    for position, token_id in enumerate(ids):
        if token_id in stop_ids:
            return ids[:position]
    return ids


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's and those of the generation config."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})
