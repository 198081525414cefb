"""`divergence`: any of them by name, on whole logits, with its inputs checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses._common import lift
from kdflow_lab.losses.names import check_params, entry, full_name


def divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    **params: Any,
) -> Tensor:
    """Compute a divergence per token, unreduced.

    Args:
        name: See `kdflow_lab.losses.names`; KDFlow's short names work too.
        student_logits: Float[..., V], any float dtype; -inf excludes a token.
        teacher_logits: The same shape; no gradient flows here.
        temperature: Greater than 0; divides both logits, after they are lifted to float32.
        temperature_squared: Multiply by temperature**2, so that gradients keep their size as the
            temperature grows (Hinton et al., arXiv:1503.02531, section 2).
        **params: Of the divergence, such as `beta` of `jsd`.

    Returns:
        Float32[...] (float64 if either input is), in nats: the caller sums and divides. It is inf
        where the formula is, and its gradient is zero there.

    Raises:
        ConfigError: Unknown name or parameter, a value out of range, or rows without a
            distribution: a NaN, a +inf, or nothing but -inf.
        ShapeError: The two shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"Student logits are {tuple(student_logits.shape)}, teacher logits "
            f"{tuple(teacher_logits.shape)}; expected the same [tokens, vocabulary]. "
            "Cut both to the vocabulary that the two models share."
        )
    if student_logits.ndim == 0 or student_logits.shape[-1] == 0:
        raise ShapeError(f"Logits are {tuple(student_logits.shape)}: there is no vocabulary.")
    check_temperature(temperature)
    params = check_params(name, params)
    double = torch.float64 in (student_logits.dtype, teacher_logits.dtype)
    width = student_logits.shape[-1]
    student = (student_logits.double() if double else lift(student_logits)).reshape(-1, width)
    with torch.no_grad():
        teacher = (teacher_logits.double() if double else lift(teacher_logits)).reshape(-1, width)
        for side, logits in (("student", student), ("teacher", teacher)):
            _check_rows(side, logits)
    value = per_token_value(name, student, teacher, temperature, params)
    value = value * temperature**2 if temperature_squared else value
    return value.reshape(student_logits.shape[:-1])


def per_token_value(
    name: str, student_TV: Tensor, teacher_TV: Tensor, temperature: float, params: dict[str, Any]
) -> Tensor:
    """The divergence of lifted logits, Float[T]; differentiable in the student's where that is on.

    Raises:
        ShapeError: A registered function does not return one value for each token.
    """
    function = entry(name).load()
    with torch.no_grad():
        teacher_TV = teacher_TV.detach()
        teacher_TV = teacher_TV if temperature == 1.0 else teacher_TV / temperature
    student_TV = student_TV if temperature == 1.0 else student_TV / temperature
    value = function(student_TV, teacher_TV, **params)
    if not isinstance(value, Tensor) or value.shape != student_TV.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"The divergence {full_name(name)!r} returned {got}; expected one value for each token,"
            f" ({student_TV.shape[0]},)."
        )
    return value


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that divides nothing well.

    Raises:
        ConfigError: It is not a positive number.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"The temperature is {temperature}; expected a number above 0.")


def _check_rows(side: str, logits_TV: Tensor) -> None:
    """Refuse rows that are no distribution, naming them."""
    # the largest of a row is NaN if any is, inf if any is, -inf if all are
    bad = (~logits_TV.amax(dim=-1).isfinite()).nonzero()[:, 0].tolist()
    if not bad:
        return
    row = logits_TV[bad[0]]
    what = "NaN" if row.isnan().any() else "+inf" if row.isposinf().any() else "only -inf"
    rows = ", ".join(map(str, bad[:10])) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
    raise ConfigError(
        f"The {side}'s logits are no distribution in {len(bad)} of {len(logits_TV)} rows: {rows}. "
        f"Row {bad[0]} holds {what}. Look at what the {side} computed there."
    )
