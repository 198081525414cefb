"""The recipe that makes the zoo's weights on a CPU: `python -m kdflow_lab.zoo train`.

The length is given in steps, not in minutes, so that a slow or busy machine makes the same models.
Rows are drawn fresh all the time; no row is meant to come twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from kdflow_lab.zoo import prose
from kdflow_lab.zoo.batches import Batch, chat_batches, prose_batches
from kdflow_lab.zoo.models import new_model
from kdflow_lab.zoo.scoring import accuracy, table
from kdflow_lab.zoo.tasks import KINDS, stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one of the models is trained."""

    steps: int
    """Optimizer steps."""
    lr: float
    """Highest learning rate: after the warm-up, for the first half of the steps."""
    batch_rows: int
    """Chat rows in a step."""
    prose_share: float
    """Share of the steps that read docstrings instead of chat rows."""
    echo_share: float
    """Share of the chat rows that are echo and docstring questions; the rest are tasks."""
    autocast: bool
    """Matrix products in bfloat16. Pays at hidden size 256 (+40 %), not at 128."""
    seed: int = 0


RECIPES = {
    "teacher": Recipe(
        steps=5000, lr=1.5e-3, batch_rows=64, prose_share=0.06, echo_share=0.04, autocast=True
    ),
    # No tasks at all: it learns to speak and to copy, and distillation has to teach it the rest.
    "student": Recipe(
        steps=3000, lr=2e-3, batch_rows=64, prose_share=0.35, echo_share=1.0, autocast=False
    ),
}
RECIPES["student-unigram"] = RECIPES["student"]

WARMUP_STEPS = 100
EVALUATE_EVERY = 500
VALIDATION_ROWS = 300


def answer_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over the tokens that have a label, in nats."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


def lr_factor(step: int, steps: int) -> float:
    """Return the learning rate's factor: warm-up, constant for half of the steps, then down to 0.

    Args:
        step: Steps taken so far.
        steps: Steps of the whole recipe.
    """
    return min(1.0, (step + 1) / WARMUP_STEPS, 2 * (1 - step / steps))


def mixed_rows(recipe: Recipe, weights: dict[str, float]) -> Iterator[dict]:
    """Yield chat rows for ever: tasks by `weights` (read again for every row), and echo rows."""
    rng = random.Random(recipe.seed)
    task_rows = stream("train", seed=recipe.seed + 1, weights=weights)
    chat_rows = prose.chat("train", seed=recipe.seed)
    while True:
        yield next(chat_rows if rng.random() < recipe.echo_share else task_rows)


def train(
    name: str, tokenizer: PreTrainedTokenizerBase, out: Path, *, steps: int | None = None
) -> PreTrainedModel:
    """Train a zoo model from nothing; the latest weights lie in `out` at any time.

    Args:
        name: As in `RECIPES`.
        tokenizer: The model's.
        out: Folder for the model; written at every evaluation and at the end.
        steps: Other than the recipe's.

    Returns:
        The trained model, in float32.
    """
    recipe = RECIPES[name]
    steps = recipe.steps if steps is None else steps
    model = new_model(name, tokenizer, seed=recipe.seed)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    weights = dict.fromkeys(KINDS, 1.0)
    rows = mixed_rows(recipe, weights)
    chats = chat_batches(rows, tokenizer, batch_rows=recipe.batch_rows, seed=recipe.seed)
    texts = [text for _, text in prose.texts("train")]
    proses = prose_batches(
        texts, tokenizer, rows=recipe.batch_rows // 2, length=64, seed=recipe.seed
    )
    validation = list(islice(_validation_rows(recipe), VALIDATION_ROWS))
    rng = random.Random(recipe.seed)

    begin, tokens, mean_loss = time.monotonic(), 0, 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * lr_factor(step - 1, steps)
        is_prose = rng.random() < recipe.prose_share
        batch = next(proses if is_prose else chats)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
            loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.input_ids.numel()
        if not is_prose:
            mean_loss = loss.item() if step < 20 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 0:
            passed = time.monotonic() - begin
            print(
                f"{name}: step {step}/{steps}  answer loss {mean_loss:.3f}  {passed:.0f} s  "
                f"{tokens / passed:.0f} tokens/s  ETA {passed / step * (steps - step):.0f} s",
                flush=True,
            )
        if step % EVALUATE_EVERY == 0 and step < steps:
            scores = accuracy(model, tokenizer, validation)
            # More of what is still wrong, some of what is right already. Judged on the validation
            # split; the test split is only ever reported.
            weights.update({kind: 0.3 + 2 * (1 - scores[kind]) for kind in KINDS if kind in scores})
            print(f"{name}: validation  {table(scores)}", flush=True)
            save(model, tokenizer, out)
    print(f"{name}: {steps} steps, {tokens} tokens in {time.monotonic() - begin:.0f} s", flush=True)
    save(model, tokenizer, out)
    return model


def _validation_rows(recipe: Recipe) -> Iterator[dict]:
    return (
        prose.chat("validation")
        if recipe.echo_share == 1.0
        else stream("validation", seed=recipe.seed)
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a complete Hugging Face folder, the weights in bfloat16 (half the size)."""
    from transformers import AutoModelForCausalLM

    rounded = AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(out)
    tokenizer.save_pretrained(out)
