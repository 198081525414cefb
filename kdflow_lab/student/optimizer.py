"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig


def make_optimizer(model: Any, config: DistillConfig) -> torch.optim.AdamW:
    """AdamW over sharded parameters; biases and norms (one-dimensional) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


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
