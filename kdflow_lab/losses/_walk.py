"""The walk over the tokens, a chunk at a time: every loss and every evaluation takes it.

Shape suffixes: T tokens, C tokens of a chunk, R tokens of a block, H hidden, V vocabulary, K rank
of an adapter. Logits exist for one chunk, in the products' dtype; what is computed from them, in
float32 (float64 for float64), exists for one block. The gradient with respect to the student's
logits takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._block import SLOPE, STUDENT, TEACHER, Block, Terms, take_block
from kdflow_lab.losses._chunks import Chunking
from kdflow_lab.losses.head import Head


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


@dataclass(frozen=True, slots=True)
class Side:
    """One model's rows and head, ready for products: all in one dtype, cut to the vocabulary.

    Attributes:
        hidden: Float[T, H].
        weight: Float[V, H].
        bias: Float[V] or None.
        inner: Float[T, K], the adapter's first product, or None.
        outer: Float[V, K], the adapter's second factor, or None.
        head: For scale and soft-cap.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    inner: Tensor | None
    outer: Tensor | None
    head: Head

    @classmethod
    def of(cls, hidden: Tensor, head: Head, inner: Tensor | None = None) -> Side:
        """Put a model's rows and head together; casts the head once if its dtype is another."""
        width, dtype = head.width, hidden.dtype
        outer = None
        if head.adapter is not None:
            inner = head.adapter.inner(hidden) if inner is None else inner
            outer = head.adapter.b.detach()[:width].to(dtype)
        bias = None if head.bias is None else head.bias.detach()[:width].to(dtype)
        weight = head.weight.detach()[:width].to(dtype)
        return cls(
            hidden.detach(), weight, bias, None if inner is None else inner.detach(), outer, head
        )

    def logits_into(self, out_CV: Tensor, rows: slice) -> None:
        """Write the products of some rows, before scale and soft-cap."""
        if self.bias is None:
            torch.mm(self.hidden[rows], self.weight.t(), out=out_CV)
        else:
            torch.addmm(self.bias, self.hidden[rows], self.weight.t(), out=out_CV)
        if self.inner is not None and self.outer is not None:
            out_CV.addmm_(self.inner[rows], self.outer.t())


@torch.no_grad()
def walk(
    student: Side,
    teacher: Side | None,
    labels: Tensor | None,
    terms: Terms,
    chunking: Chunking,
    take_gradient: Callable[[slice, Tensor], None] | None = None,
) -> PerToken:
    """Compute every token's terms, and hand out the gradient chunk by chunk.

    Args:
        student: The student's rows and head.
        teacher: The teacher's, or None.
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
    student_CV = torch.empty(held, width, dtype=student.hidden.dtype, device=device)
    teacher_CV = (
        None
        if teacher is None
        else torch.empty(held, width, dtype=teacher.hidden.dtype, device=device)
    )
    block = Block(min(held, chunking.block_tokens), width, dtype, device)
    for rows in chunking.chunks(num_tokens):
        size = rows.stop - rows.start
        student.logits_into(student_CV[:size], rows)
        if teacher is not None and teacher_CV is not None:
            teacher.logits_into(teacher_CV[:size], rows)
        for part in chunking.blocks(size):
            tokens = slice(rows.start + part.start, rows.start + part.stop)
            z_RV = block.lifted(student_CV[part], STUDENT)
            slope_RV = None
            if terms.wants_gradient and student.head.soft_cap is not None:
                slope_RV = block.tensor(len(z_RV), SLOPE)
            student.head.transform_(z_RV, slope_RV)
            t_RV = None
            if teacher is not None and teacher_CV is not None:
                t_RV = block.lifted(teacher_CV[part], TEACHER)
                teacher.head.transform_(t_RV)
            of_block = take_block(
                z_RV, t_RV, None if labels is None else labels[tokens], terms, block
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
