"""How many answers of a model are right, kind by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.zoo.batches import prompt_text
from kdflow_lab.zoo.tasks import is_correct

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    batch_rows: int = 128,
    max_new_tokens: int = 24,
    sampling_temperature: float = 0.0,
) -> list[str]:
    """Let the model answer the rows' questions.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer.
        rows: Rows with `messages`; only the question is read.
        batch_rows: Rows answered at once.
        max_new_tokens: Longest answer.
        sampling_temperature: 0 takes the likeliest token each time; else sample, with all tokens
            allowed.

    Returns:
        One text per row, in the order of `rows`.
    """
    was_training = model.training
    model.eval()
    answers = [""] * len(rows)
    # Rows of like length together: less padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["messages"][0]["content"]))
    choice: dict[str, Any] = {"do_sample": False}
    if sampling_temperature > 0:
        choice = {"do_sample": True, "temperature": sampling_temperature, "top_k": 0, "top_p": 1.0}
    for start in range(0, len(order), batch_rows):
        places = order[start : start + batch_rows]
        inputs = tokenizer(
            [prompt_text(rows[i], tokenizer) for i in places],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **choice,
        )
        texts = tokenizer.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, text in zip(places, texts, strict=True):
            answers[i] = text
    model.train(was_training)
    return answers


def accuracy(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Return the share of exactly right greedy answers: under "all", and under every kind."""
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for row, text in zip(rows, answer(model, tokenizer, rows), strict=True):
        for name in ("all", row["kind"]):
            seen[name] += 1
            right[name] += is_correct(row, text)
    return {name: right[name] / count for name, count in seen.items()}


def table(scores: dict[str, float]) -> str:
    """Return the scores as one line, `all` first."""
    return "  ".join(f"{name} {score:.1%}" for name, score in scores.items())
