"""The walk over the tokens, a chunk at a time: every loss and every evaluation takes it.

Shape suffixes: T tokens, C tokens of a chunk, R tokens of a block, H hidden, V vocabulary, K rank
of an adapter. Logits exist for one chunk, in the products' dtype; what is computed from them, in
float32 (float64 for float64), exists for one block. The gradient with respect to the student's
logits takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._block import SLOPE, STUDENT, Block, take_block
from kdflow_lab.losses._chunks import Chunking
from kdflow_lab.losses._side import Side
from kdflow_lab.losses._teachers import Teacher
from kdflow_lab.losses._terms import Terms


class PerToken(NamedTuple):
    """Per-token statistics of a student against its teacher and the labels, each Float[T].

    Attributes:
        kd: The divergence in nats; NaN without a teacher.
        ce: Cross-entropy in nats; NaN without labels.
        agreement: 1 where both models' most likely token is the same, else 0; NaN without a
            teacher.
    """

    kd: Tensor
    ce: Tensor
    agreement: Tensor


@torch.no_grad()
def walk(
    student: Side,
    teacher: Teacher | None,
    labels: Tensor | None,
    terms: Terms,
    chunking: Chunking,
    take_gradient: Callable[[slice, Tensor], None] | None = None,
) -> PerToken:
    """Compute every token's terms, and hand out the gradient chunk by chunk.

    Args:
        student: The student's rows and head.
        teacher: The teacher's side, or None.
        labels: Int64[T] or None.
        terms: What is computed.
        chunking: Rows at a time.
        take_gradient: Gets a chunk's rows and the gradient of the loss with respect to the
            student's products, Float[C, V] in their dtype, valid during the call.
    """
    num_tokens, width = student.hidden.shape[0], student.weight.shape[0]
    device, dtype = student.hidden.device, statistics_dtype(student.hidden.dtype)
    values = PerToken(
        *(torch.full((num_tokens,), torch.nan, dtype=dtype, device=device) for _ in range(3))
    )
    held = min(num_tokens, chunking.chunk_tokens)
    student_CV = student.products(held)
    block = Block(min(held, chunking.block_tokens), width, dtype, device)
    if teacher is not None:
        teacher.hold(held, min(held, chunking.block_tokens), dtype)
    for rows in chunking.chunks(num_tokens):
        size = rows.stop - rows.start
        student.logits_into(student_CV[:size], rows)
        if teacher is not None:
            teacher.take_chunk(rows)
        for part in chunking.blocks(size):
            tokens = slice(rows.start + part.start, rows.start + part.stop)
            z_RV = block.lifted(student_CV[part], STUDENT)
            slope_RV = None
            if terms.wants_gradient and student.head.soft_cap is not None:
                slope_RV = block.tensor(len(z_RV), SLOPE)
            student.head.transform_(z_RV, slope_RV)
            target = None if teacher is None else teacher.target(part, tokens)
            of_block = take_block(
                z_RV, target, None if labels is None else labels[tokens], terms.at(tokens), block
            )
            for all_T, some_R in zip(values, of_block, strict=True):
                if some_R is not None:
                    all_T[tokens] = some_R
            if not terms.wants_gradient:
                continue
            if slope_RV is not None:
                z_RV.mul_(slope_RV)
            elif student.head.logit_scale != 1.0:
                z_RV.mul_(student.head.logit_scale)
            if z_RV.data_ptr() != student_CV[part].data_ptr():
                student_CV[part].copy_(z_RV)
        if take_gradient is not None and terms.wants_gradient:
            take_gradient(rows, student_CV[:size])
    return values


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed from logits of a dtype: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
