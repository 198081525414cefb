"""The chunked loss between two tokenizers: each student token with its own teacher row, or none.

Shape suffixes: T the student's response tokens, U the teacher's, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses._chunked import LossOutput, Work, walked_loss
from kdflow_lab.losses._divergences import check_temperature
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._side import Side
from kdflow_lab.losses._teachers import PairedRows, TargetMap
from kdflow_lab.losses._terms import Terms
from kdflow_lab.losses.head import Head
from kdflow_lab.losses.names import check_params, full_name


def paired_kd_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    labels: Tensor,
    *,
    teacher_rows: NDArray[np.int64],
    map_target: TargetMap,
    divergence: str = "forward_kl",
    params: dict[str, Any] | None = None,
    function: Callable[[Tensor, Tensor], Tensor] | None = None,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    num_valid_tokens: float | None = None,
    chunk_tokens: int | Literal["auto"] = "auto",
    closed_form: bool = True,
) -> LossOutput:
    """Compute (1 - kd_ratio) * CE + kd_ratio * divergence; tokens without a row have CE alone.

    Held at once are a chunk's logits of the student, those of the distinct teacher rows that it
    needs, and what a block makes of them.

    Args:
        student_hidden: Float[T, Hs], rows that predict the response tokens; T may be 0.
        student_head: Cut to the student tokenizer's ids.
        teacher_hidden: Float[U, Ht], detached; U may be 0.
        teacher_head: Cut to the teacher tokenizer's ids.
        labels: Int64[T], in the student's ids.
        teacher_rows: Int64[T], the row that a token is compared with, -1 for none.
        map_target: Makes the target of a block from the teacher's logits.
        divergence: A name of `kdflow_lab.losses.names`.
        params: Of the divergence.
        function: Instead of the divergence: of the student's logits and the target's, both divided
            by the temperature, to one value a token.
        kd_ratio: In 0..1.
        temperature: Divides both logits in the divergence; cross-entropy is at temperature 1.
        temperature_squared: Multiply the divergence by temperature**2.
        num_valid_tokens: What the sums are divided by, paired or not: the student's response tokens
            of the whole global batch. Default: T.
        chunk_tokens: As in `chunked_kd_loss`.
        closed_form: As there.

    Returns:
        See `LossOutput`; agreement counts tokens without a row as not agreeing.

    Raises:
        ConfigError: Unknown divergence or parameter, or a value out of range.
        ShapeError: Rows, hidden sizes, labels or row numbers do not fit.
    """
    if not 0.0 <= kd_ratio <= 1.0:
        raise ConfigError(f"kd_ratio is {kd_ratio}; expected a number from 0 to 1.")
    check_temperature(temperature)
    paired = len(teacher_rows), len(teacher_hidden)
    check_paired_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, paired)
    if len(teacher_rows) and int(teacher_rows.max()) >= len(teacher_hidden):
        raise ShapeError(
            f"The pairing names the teacher's row {int(teacher_rows.max())}, but the teacher has "
            f"{len(teacher_hidden)} rows. Pair the tokens of this micro-batch."
        )
    num_valid_tokens = student_hidden.shape[0] if num_valid_tokens is None else num_valid_tokens
    share = 1.0 / (num_valid_tokens or 1.0)
    learns = torch.is_grad_enabled()
    terms = Terms(
        divergence=full_name(divergence),
        params=check_params(divergence, params or {}),
        temperature=temperature,
        factor=temperature**2 if temperature_squared else 1.0,
        ce_weight=(1.0 - kd_ratio) * share if learns else 0.0,
        kd_weight=kd_ratio * share if learns else 0.0,
        in_place=closed_form,
        function=function,
    )
    teacher = PairedRows(Side.of(teacher_hidden, teacher_head), teacher_rows, map_target)
    return walked_loss(
        student_hidden, Work(student_head, teacher, labels, terms, kd_ratio, share, chunk_tokens)
    )
