"""What the divergences share: log-probabilities, and a KL that knows zero probabilities.

Shape suffixes: T tokens, V vocabulary (or any set of outcomes). Values are in nats.

Two rules hold for every divergence. A token that has probability zero on one side (a masked entry,
logit -inf) adds nothing where the formula's own limit is zero, instead of 0 * inf = NaN. Where the
formula is infinite, as KL(teacher || student) is when the student excludes what the teacher allows,
the value is inf, and its gradient is defined as zero: there is no direction to learn from.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lift(logits: Tensor) -> Tensor:
    """To float32; float64 stays float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax over the last dimension in float32, or in float64 for float64 logits.

    Logits are lifted first and then divided, so that any temperature is exact.
    """
    lifted = lift(logits)
    return torch.log_softmax(lifted if temperature == 1.0 else lifted / temperature, dim=-1)


def kl(a_logp_TV: Tensor, b_logp_TV: Tensor) -> Tensor:
    """KL(a || b) = sum_v a_v (log a_v - log b_v) of log-probabilities, Float[T]."""
    a_TV = a_logp_TV.exp()
    excluded = a_TV == 0
    infinite = b_logp_TV.isneginf() & ~excluded
    difference = (a_logp_TV - b_logp_TV).masked_fill(excluded | infinite, 0.0)
    return infinite_where(infinite.any(dim=-1), (a_TV * difference).sum(dim=-1))


def infinite_where(rows_T: Tensor, value_T: Tensor) -> Tensor:
    """Set some values to inf; they get no gradient."""
    return torch.where(rows_T, torch.inf, value_T)
