"""Divergences between two next-token distributions, per token.

Shape suffixes: T tokens, V vocabulary. All values are in nats. Logits are first lifted to float32
(float64 stays float64) and then divided by the temperature, so that any temperature is exact. A
token that has probability zero on one side (a masked vocabulary entry, logit -inf) adds nothing
where the formula's own limit is zero, instead of 0 * inf = NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses.names import full_name

LogProbDivergence = Callable[[Tensor, Tensor], Tensor]
"""From student and teacher log-probabilities `[T, V]` to a value per token `[T]`."""


def forward_kl(student_logp_TV: Tensor, teacher_logp_TV: Tensor) -> Tensor:
    """KL(teacher || student) = sum_v p_v (log p_v - log q_v): covers all of the teacher's mass.

    Source: Hinton et al., arXiv:1503.02531, section 2 (with the teacher's entropy kept).
    """
    return _kl(teacher_logp_TV, student_logp_TV)


def reverse_kl(student_logp_TV: Tensor, teacher_logp_TV: Tensor) -> Tensor:
    """KL(student || teacher) = sum_v q_v (log q_v - log p_v): stays within the teacher's modes.

    Source: MiniLLM, arXiv:2306.08543, equation 1.
    """
    return _kl(student_logp_TV, teacher_logp_TV)


DIVERGENCES: dict[str, LogProbDivergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    temperature_squared: bool = False,
) -> Tensor:
    """Compute a divergence per token, unreduced.

    Args:
        name: See `kdflow_lab.losses.NAMES`; KDFlow's short names work too.
        student_logits: Float[T, V], any float dtype.
        teacher_logits: Float[T, V]; no gradient flows here.
        temperature: Greater than 0; divides both logits.
        temperature_squared: Multiply by temperature**2, so that gradients keep their size as the
            temperature grows (Hinton et al., arXiv:1503.02531, section 2).

    Returns:
        Float32[T] (float64 if either input is), in nats: the caller sums and divides.

    Raises:
        ConfigError: Unknown name, or a temperature that is not positive.
        ShapeError: The two shapes differ.
    """
    function = DIVERGENCES[full_name(name)]
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"Student logits are {tuple(student_logits.shape)}, teacher logits "
            f"{tuple(teacher_logits.shape)}; expected the same [tokens, vocabulary]. "
            "Cut both to the vocabulary that the two models share."
        )
    if not temperature > 0:
        raise ConfigError(f"The temperature is {temperature}; expected a number above 0.")
    student_logp = log_probabilities(student_logits, temperature)
    with torch.no_grad():
        teacher_logp = log_probabilities(teacher_logits, temperature)
    value = function(student_logp, teacher_logp)
    return value * temperature**2 if temperature_squared else value


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax over the last dimension in float32, or in float64 for float64 logits."""
    lifted = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(lifted if temperature == 1.0 else lifted / temperature, dim=-1)


def _kl(a_logp_TV: Tensor, b_logp_TV: Tensor) -> Tensor:
    """KL(a || b) per token; entries that `a` excludes (log a = -inf) count as zero."""
    excluded = a_logp_TV.isneginf()
    difference = (a_logp_TV - b_logp_TV).masked_fill(excluded, 0.0)
    return (a_logp_TV.exp() * difference).sum(dim=-1)
