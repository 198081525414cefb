"""Rows and prose as tensors for the zoo's own training loop."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from kdflow_lab.zoo.tokenizer import text_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


class Batch(NamedTuple):
    """One step's tokens, padded on the right: causal attention then needs no mask.

    Attributes:
        input_ids: Int64[B, S].
        labels: Int64[B, S], already shifted: the token after each one, or `IGNORE_INDEX`.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


def around_question(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template writes before a question, and behind it up to the answer."""
    mark = "\0"
    asked = [{"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before, _, behind = str(text).partition(mark)
    return before, behind


def prompt_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template makes of the question, up to where the answer starts."""
    before, behind = around_question(tokenizer)
    return f"{before}{row['messages'][0]['content']}{behind}"


def encode_rows(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    """Return `(prompt ids, answer ids)` of each row; the answer ends with the end of the turn.

    Prompt and answer are tokenized apart, many at a time, and the chat template is rendered once
    for all: ten times faster than once a row, and the same tokens (a test holds that).
    """
    rows = list(rows)
    if not rows:
        return []  # the library refuses an empty list
    before, behind = around_question(tokenizer)
    asked = [f"{before}{row['messages'][0]['content']}{behind}" for row in rows]
    prompts = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answers = tokenizer(
        [f"{row['messages'][1]['content']}{tokenizer.eos_token}" for row in rows],
        add_special_tokens=False,
    )["input_ids"]
    return list(zip(prompts, answers, strict=True))


def pad_batch(pairs: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    """Return the rows as one batch with labels on the answers only."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    input_ids = torch.full((len(pairs), width), pad_id)
    labels = torch.full((len(pairs), width), IGNORE_INDEX)
    for i, (prompt, answer) in enumerate(pairs):
        ids = torch.tensor(prompt + answer)
        input_ids[i, : len(ids) - 1] = ids[:-1]
        labels[i, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return Batch(input_ids, labels)


def chat_batches(
    rows: Iterator[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_rows: int,
    seed: int = 0,
    pool_batches: int = 32,
) -> Iterator[Batch]:
    """Yield batches of rows of similar length, for as long as there are rows.

    Args:
        rows: Where the rows come from.
        tokenizer: The zoo's tokenizer.
        batch_rows: Rows in a batch.
        seed: Orders the batches of a pool.
        pool_batches: So many batches are drawn at once, sorted by length, and then mixed.
    """
    rng = random.Random(seed)
    while pool := encode_rows(islice(rows, batch_rows * pool_batches), tokenizer):
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [pool[i : i + batch_rows] for i in range(0, len(pool), batch_rows)]
        rng.shuffle(batches)
        for batch in batches:
            yield pad_batch(batch, cast(int, tokenizer.pad_token_id))


def prose_batches(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, seed: int = 0
) -> Iterator[Batch]:
    """Yield batches cut anywhere out of the texts, which are joined by a token of their own.

    Args:
        texts: What to read.
        tokenizer: The zoo's tokenizer.
        rows: Rows in a batch.
        length: Tokens in a row.
        seed: Decides where the cuts fall.
    """
    ids: list[int] = []
    between = text_end(tokenizer)
    for text in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids += [*text, between]
    tokens = torch.tensor(ids)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - length - 1, (rows, 1), generator=generator)
        window = tokens[starts + torch.arange(length + 1)]
        yield Batch(window[:, :-1], window[:, 1:])
