"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig


BESIDE = "beside."
"""What the names of an algorithm's own parameters begin with (`Student.beside`)."""


def make_optimizer(
    model: Any, config: DistillConfig, *, beside_lr: float | None = None
) -> torch.optim.AdamW:
    """AdamW over sharded parameters; biases and norms (one-dimensional) are not decayed.

    Args:
        model: The student's.
        config: `lr`, `betas` and `weight_decay` are read.
        beside_lr: Learning rate of the algorithm's own parameters, which are then not decayed;
            None treats them as the student's.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    own = [p for name, p in named if name.startswith(BESIDE) and beside_lr is not None]
    parameters = [p for name, p in named if not name.startswith(BESIDE) or beside_lr is None]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "own_lr": beside_lr})
    groups = [group for group in groups if group["params"]]  # adapters are no vectors
    # fused: one pass over each parameter, without the copies of all of them that `foreach` makes
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, config: DistillConfig) -> None:
    """Give every group the learning rate of a step; one with its own follows the same schedule.

    Args:
        optimizer: From `make_optimizer`.
        lr: From `lr_at`.
        config: Whose `lr` is the schedule's highest.
    """
    for group in optimizer.param_groups:
        own = group.get("own_lr")
        group["lr"] = lr if own is None else lr * own / config.lr


def lr_at(step: int, steps: int, config: DistillConfig) -> float:
    """Learning rate of a step.

    Args:
        step: Counts from 1.
        steps: The last step.
        config: `lr`, `scheduler`, `warmup_ratio` and `min_lr_ratio` are read.

    Returns:
        A linear rise over the warm-up steps, then `config.scheduler` down towards
        lr * min_lr_ratio, which the step after the last one would have.
    """
    warmup = math.ceil(steps * config.warmup_ratio)
    if step <= warmup:
        return config.lr * step / warmup
    # The first step after the warm-up has all of it, and no step is taken with nothing.
    share = min(1.0, (step - 1 - warmup) / max(1, steps - warmup))
    falling = {
        "constant": 1.0,
        "linear": 1.0 - share,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * share)),
    }[config.scheduler]
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * falling)
