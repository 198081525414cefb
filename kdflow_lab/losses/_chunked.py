"""The distillation loss without the logits: from hidden states and heads, a chunk at a time.

Shape suffixes: T response tokens, C tokens of a chunk, H hidden, V vocabulary. A `[T, V]` tensor
never exists. Each chunk's gradient is computed right where its logits are (in the forward pass), so
that an optimizer step costs four head products (student logits, teacher logits, gradient of the
student's hidden states, gradient of the student's head) and nothing is computed again in backward;
the idea is Liger-Kernel's fused linear losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses._divergences import divergence as divergence_per_token
from kdflow_lab.losses.head import Head
from kdflow_lab.losses.names import full_name

CHUNK_ELEMENTS = 1 << 25
"""Logits of a chunk when `chunk_tokens="auto"`: 128 MiB in float32. Chunks of 256 rows or more keep
the matrix products near their peak rate."""


class LossOutput(NamedTuple):
    """What a loss gives back (a tuple, so that FSDP2 sees the tensor that backward starts from).

    Attributes:
        loss: Scalar, differentiable: (1 - kd_ratio) * ce + kd_ratio * kd.
        ce: Scalar, detached: cross-entropy summed and divided by `num_valid_tokens`; NaN without
            labels.
        kd: Scalar, detached: divergence summed and divided by `num_valid_tokens`; NaN without a
            teacher.
        agreement: Scalar, detached: share of `num_valid_tokens` whose top token is the teacher's;
            NaN without a teacher.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    agreement: Tensor


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything of one call that is not differentiated."""

    head: Head
    teacher_hidden: Tensor | None
    teacher_head: Head | None
    labels: Tensor | None
    kd_ratio: float
    num_valid_tokens: float
    chunk_tokens: int
    options: dict[str, Any] = field(default_factory=dict)


def chunked_kd_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor | None,
    *,
    divergence: str = "forward_kl",
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    num_valid_tokens: float | None = None,
    chunk_tokens: int | Literal["auto"] = "auto",
) -> LossOutput:
    """Compute (1 - kd_ratio) * CE + kd_ratio * divergence from hidden states, in flat memory.

    Args:
        student_hidden: Float[T, Hs], final-norm rows that predict the response tokens; T may be 0.
        student_head: Gradients flow to its weight and bias where those require them.
        teacher_hidden: Float[T, Ht], detached, or None with kd_ratio = 0.
        teacher_head: Cut to the same width as the student's.
        labels: Int64[T], the response tokens, or None with kd_ratio = 1.
        divergence: A name of `kdflow_lab.losses.NAMES`.
        kd_ratio: In 0..1.
        temperature: Divides both logits in the divergence; cross-entropy is at temperature 1.
        temperature_squared: Multiply the divergence by temperature**2.
        num_valid_tokens: What the sums are divided by: the response tokens of the whole global
            batch, so that the value does not depend on how it is split. Default: T.
        chunk_tokens: Rows whose logits are held at once.

    Returns:
        See `LossOutput`. Sums over chunks are float32 (float64 for float64 hidden states).

    Raises:
        ConfigError: Unknown divergence, a ratio outside 0..1, a teacher or labels missing.
        ShapeError: Rows, hidden sizes or vocabularies do not fit.
    """
    if not 0.0 <= kd_ratio <= 1.0:
        raise ConfigError(f"kd_ratio is {kd_ratio}; expected a number from 0 to 1.")
    _check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, kd_ratio)
    num_tokens = student_hidden.shape[0]
    if chunk_tokens == "auto":
        chunk_tokens = max(1, CHUNK_ELEMENTS // student_head.width)
    elif chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens is {chunk_tokens}; expected at least 1, or 'auto'.")
    work = _Work(
        head=student_head,
        teacher_hidden=None if teacher_hidden is None else teacher_hidden.detach(),
        teacher_head=teacher_head,
        labels=labels,
        kd_ratio=kd_ratio,
        num_valid_tokens=float(num_tokens if num_valid_tokens is None else num_valid_tokens) or 1.0,
        chunk_tokens=chunk_tokens,
        options={
            "name": full_name(divergence),
            "temperature": temperature,
            "temperature_squared": temperature_squared,
        },
    )
    loss, ce, kd, agreement = _ChunkedLoss.apply(
        student_hidden, student_head.weight, student_head.bias, work
    )
    return LossOutput(loss, ce, kd, agreement)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one walk over the chunks; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        want_any = want_hidden or want_weight or want_bias
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # One buffer for the sums: ce, kd, agreement.
        sums = torch.zeros(3, dtype=dtype, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and want_bias else None
        for rows in _chunks(hidden.shape[0], work.chunk_tokens):
            hidden_CH = hidden[rows]
            raw_CV = work.head.linear(hidden_CH).requires_grad_(want_any)
            with torch.set_grad_enabled(want_any):
                loss, chunk_sums = _chunk_loss(raw_CV, work, rows)
            sums += chunk_sums
            if not want_any:
                continue
            (grad_CV,) = torch.autograd.grad(loss, raw_CV)
            grad_CV = grad_CV.to(hidden.dtype)
            width = work.head.width
            if grad_hidden is not None:
                torch.mm(grad_CV, weight[:width].to(hidden.dtype), out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight[:width], grad_CV, hidden_CH)
            if grad_bias is not None:
                grad_bias[:width] += grad_CV.sum(dim=0, dtype=dtype)
        ctx.grads = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ce, kd, agreement = sums / work.num_valid_tokens
        if work.labels is None:
            ce = torch.full_like(ce, torch.nan)
        if work.teacher_hidden is None:
            kd, agreement = torch.full_like(kd, torch.nan), torch.full_like(kd, torch.nan)
        loss = torch.zeros_like(ce)
        if work.kd_ratio < 1.0:
            loss = loss + (1.0 - work.kd_ratio) * ce
        if work.kd_ratio > 0.0:
            loss = loss + work.kd_ratio * kd
        ctx.mark_non_differentiable(ce, kd, agreement)
        return loss, ce, kd, agreement

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        # torch wants one gradient for each input of forward: hidden, weight, bias, work
        return (*(None if grad is None else grad * scale for grad in ctx.grads), None)


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Yield the slices of a walk over `num_tokens` rows."""
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))


def _chunk_loss(raw_CV: Tensor, work: _Work, rows: slice) -> tuple[Tensor, Tensor]:
    """The chunk's share of the loss, and its sums of ce, kd and agreement (detached)."""
    student_CV = work.head.transform(raw_CV)
    zero = student_CV.new_zeros(())
    ce, kd, agreed = zero, zero, zero
    if work.labels is not None:
        # with kd_ratio = 1 the cross-entropy is only reported: no graph for it
        logits = student_CV if work.kd_ratio < 1.0 else student_CV.detach()
        ce = F.cross_entropy(logits, work.labels[rows], reduction="sum")
    if work.teacher_hidden is not None and work.teacher_head is not None:
        with torch.no_grad():
            teacher_CV = work.teacher_head.logits(work.teacher_hidden[rows]).to(student_CV.dtype)
            agreed = (student_CV.argmax(-1) == teacher_CV.argmax(-1)).sum().to(zero.dtype)
        logits = student_CV if work.kd_ratio > 0.0 else student_CV.detach()
        options = dict(work.options)
        kd = divergence_per_token(options.pop("name"), logits, teacher_CV, **options).sum()
    loss = (1.0 - work.kd_ratio) * ce + work.kd_ratio * kd
    return loss / work.num_valid_tokens, torch.stack([ce, kd, agreed]).detach()


def _add_product(total_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """Add `grad.T @ hidden` to `total`, which may be wider than the factors' dtype."""
    if total_VH.dtype == grad_CV.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
    else:
        total_VH += grad_CV.t() @ hidden_CH


class PerToken(NamedTuple):
    """Per-token statistics of a student against its teacher and the labels, each Float[T]."""

    kd: Tensor
    ce: Tensor
    agreement: Tensor


@torch.no_grad()
def per_token(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    labels: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    chunk_tokens: int | Literal["auto"] = "auto",
) -> PerToken:
    """The same walk for evaluation: divergence, cross-entropy and top-1 agreement of every token.

    Args and errors as in `chunked_kd_loss`; nothing is summed and no gradient is kept.
    """
    _check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, 0.5)
    if chunk_tokens == "auto":
        chunk_tokens = max(1, CHUNK_ELEMENTS // student_head.width)
    parts: list[PerToken] = []
    for rows in _chunks(student_hidden.shape[0], chunk_tokens):
        student_CV = student_head.logits(student_hidden[rows])
        teacher_CV = teacher_head.logits(teacher_hidden[rows]).to(student_CV.dtype)
        kd = divergence_per_token(divergence, student_CV, teacher_CV, temperature=temperature)
        ce = F.cross_entropy(student_CV, labels[rows], reduction="none")
        agreement = (student_CV.argmax(-1) == teacher_CV.argmax(-1)).to(kd.dtype)
        parts.append(PerToken(kd, ce, agreement))
    if not parts:
        return PerToken(*(torch.zeros(0) for _ in range(3)))
    return PerToken(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _check_inputs(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor | None,
    kd_ratio: float,
) -> None:
    """Refuse what cannot be computed, in the caller's words."""
    num_tokens = student_hidden.shape[0]
    if kd_ratio > 0.0 and (teacher_hidden is None or teacher_head is None):
        raise ConfigError(
            f"kd_ratio is {kd_ratio}, which needs the teacher's hidden states and head. Pass both, "
            "or kd_ratio=0."
        )
    if kd_ratio < 1.0 and labels is None:
        raise ConfigError(
            f"kd_ratio is {kd_ratio}, which needs labels for the cross-entropy. Pass them, or "
            "kd_ratio=1."
        )
    if labels is not None and labels.shape != (num_tokens,):
        raise ShapeError(f"labels are {tuple(labels.shape)}; expected ({num_tokens},), one a row.")
    if labels is not None and num_tokens and int(labels.max()) >= student_head.width:
        raise ShapeError(
            f"A label is {int(labels.max())}, but the heads share only {student_head.width} ids. "
            "The data holds tokens that one of the two models does not have."
        )
    if teacher_hidden is None or teacher_head is None:
        return
    if teacher_hidden.shape[0] != num_tokens:
        raise ShapeError(
            f"The student has {num_tokens} rows, the teacher {teacher_hidden.shape[0]}; expected "
            "one teacher row for each student row."
        )
    if teacher_head.width != student_head.width:
        raise ShapeError(
            f"The student's head is {student_head.width} wide, the teacher's {teacher_head.width}. "
            "Cut both to the ids that the two tokenizers share: Head.cut(vocab_size)."
        )
