"""The walk of the loss without its gradients: what evaluation and probes read."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses._divergences import check_temperature
from kdflow_lab.losses._inputs import check_inputs
from kdflow_lab.losses._side import Side
from kdflow_lab.losses._teachers import SameRows, Teacher
from kdflow_lab.losses._terms import Terms
from kdflow_lab.losses._walk import PerToken, walk
from kdflow_lab.losses.head import Head
from kdflow_lab.losses.names import check_params, full_name


@torch.no_grad()
def per_token(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    chunk_tokens: int | Literal["auto"] = "auto",
    **params: Any,
) -> PerToken:
    """Divergence, cross-entropy and top-1 agreement of every token.

    Args and errors as in `chunked_kd_loss`. Without a teacher, divergence and agreement are NaN.
    """
    kd_ratio = 0.0 if teacher_hidden is None and teacher_head is None else 0.5
    check_temperature(temperature)
    terms = Terms(full_name(divergence), check_params(divergence, params), temperature)
    check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, kd_ratio)
    teacher = None
    if teacher_hidden is not None and teacher_head is not None:
        teacher = SameRows(Side.of(teacher_hidden, teacher_head))
    return walked_tokens(student_hidden, student_head, teacher, labels, terms, chunk_tokens)


@torch.no_grad()
def walked_tokens(
    student_hidden: Tensor,
    student_head: Head,
    teacher: Teacher | None,
    labels: Tensor,
    terms: Terms,
    chunk_tokens: int | Literal["auto"] = "auto",
) -> PerToken:
    """Walk over the tokens for their values alone; the inputs are checked."""
    row_bytes = student_head.width * student_hidden.dtype.itemsize
    chunking = plan(
        chunk_tokens,
        num_tokens=student_hidden.shape[0],
        width=student_head.width,
        row_bytes=row_bytes + (0 if teacher is None else teacher.row_bytes),
        element_bytes=max(4, student_hidden.dtype.itemsize),
        device=student_hidden.device,
    )
    return walk(Side.of(student_hidden, student_head), teacher, labels, terms, chunking)
