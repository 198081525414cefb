"""Losses on hidden states, per token: the student's rows against the teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdflow_lab.errors import ConfigError, ShapeError, unknown_name
from kdflow_lab.losses._common import lift

HIDDEN_LOSSES = ("mse", "cosine")


def hidden_mse(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Mean squared difference over the H entries of each row.

    Args:
        student_hidden: Float[T, H], projected to the teacher's width if need be.
        teacher_hidden: Float[T, H]; no gradient flows here.

    Returns:
        Float32[T] (float64 for float64 rows).

    Raises:
        ShapeError: The shapes differ.

    Source: FitNets, arXiv:1412.6550, equation 3; TinyBERT, arXiv:1909.10351, equation 8.
    """
    _check(student_hidden, teacher_hidden)
    return (lift(student_hidden) - lift(teacher_hidden.detach())).square().mean(dim=-1)


def hidden_cosine(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """1 - cosine of the angle between the rows, from 0 to 2; 1 for a row of zeros.

    Args, Returns and Raises as in `hidden_mse`.

    Source: DistilBERT, arXiv:1910.01108, section 3 (cosine embedding loss).
    """
    _check(student_hidden, teacher_hidden)
    return 1.0 - F.cosine_similarity(lift(student_hidden), lift(teacher_hidden.detach()), dim=-1)


def hidden_loss(name: str, student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """One of `HIDDEN_LOSSES` by name, Float[T].

    Raises:
        ConfigError: There is no such loss.
        ShapeError: The shapes differ.
    """
    functions = {"mse": hidden_mse, "cosine": hidden_cosine}
    if name not in functions:
        raise unknown_name("hidden loss", name, HIDDEN_LOSSES)
    return functions[name](student_hidden, teacher_hidden)


class HiddenProjection(nn.Module):
    """A learned map from the student's width to the teacher's, without a bias.

    It starts the same on every rank (by its seed), and no export holds it.
    """

    def __init__(self, student_width: int, teacher_width: int, *, seed: int = 0) -> None:
        """Draw the weight: normal, so that rows keep their mean square.

        Raises:
            ConfigError: A width is not positive.
        """
        super().__init__()
        if min(student_width, teacher_width) < 1:
            raise ConfigError(f"Widths are {student_width} and {teacher_width}; expected above 0.")
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(teacher_width, student_width, generator=generator)
        self.weight = nn.Parameter(weight / math.sqrt(student_width))

    def forward(self, student_hidden: Tensor) -> Tensor:
        """Float[T, Hs] -> Float[T, Ht]."""
        return F.linear(student_hidden, self.weight.to(student_hidden.dtype))


def _check(student_hidden: Tensor, teacher_hidden: Tensor) -> None:
    if student_hidden.shape != teacher_hidden.shape:
        raise ShapeError(
            f"The student's rows are {tuple(student_hidden.shape)}, the teacher's "
            f"{tuple(teacher_hidden.shape)}; expected the same. Rows of another width go through "
            "a HiddenProjection first."
        )
