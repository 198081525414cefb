"""The distillation loss without the logits: from hidden states and heads, a chunk at a time.

Shape suffixes: T response tokens, C tokens of a chunk, H hidden, V vocabulary. A `[T, V]` tensor
never exists. Each chunk's gradient is computed right where its logits are (in the forward pass), so
that an optimizer step costs four head products (student logits, teacher logits, gradient of the
student's hidden states, gradient of the student's head) and nothing is computed again in backward;
the idea is Liger-Kernel's fused linear losses (arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdflow_lab.errors import ConfigError
from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses._divergences import check_temperature
from kdflow_lab.losses._inputs import check_inputs
from kdflow_lab.losses._side import Side
from kdflow_lab.losses._teachers import SameRows, Teacher
from kdflow_lab.losses._terms import Terms
from kdflow_lab.losses._walk import statistics_dtype, walk
from kdflow_lab.losses._weight_gradient import WeightGradient
from kdflow_lab.losses.head import Head
from kdflow_lab.losses.names import check_params, full_name

CLOSED_FORM_TEMPORARIES = 6


class LossOutput(NamedTuple):
    """What a loss gives back (a tuple, so that FSDP2 sees the tensor that backward starts from).

    Attributes:
        loss: Scalar, differentiable: (1 - kd_ratio) * ce + kd_ratio * kd, and the hidden-state loss
            where an algorithm has one.
        ce: Scalar, detached: cross-entropy summed and divided by `num_valid_tokens`; NaN without
            labels.
        kd: Scalar, detached: divergence summed and divided by `num_valid_tokens`; NaN without a
            teacher.
        agreement: Scalar, detached: share of `num_valid_tokens` whose top token is the teacher's;
            NaN without a teacher.
        extra: What else an algorithm measured, by name: detached scalars, summed over tokens and
            divided by `num_valid_tokens`, so that micro-batches and ranks add up.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    agreement: Tensor
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - a default of a tuple, never written to


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
    closed_form: bool = True,
    **params: Any,
) -> LossOutput:
    """Compute (1 - kd_ratio) * CE + kd_ratio * divergence from hidden states, in flat memory.

    Logits are not searched for NaN, which would make a GPU wait: a loss or gradient that is not
    finite is for the caller to see.

    Args:
        student_hidden: Float[T, Hs], final-norm rows that predict the response tokens; T may be 0.
        student_head: Gradients flow to its weight, bias and adapter where those require them.
        teacher_hidden: Float[T, Ht], detached, or None with kd_ratio = 0.
        teacher_head: Cut to the same width as the student's.
        labels: Int64[T], the response tokens, or None with kd_ratio = 1.
        divergence: A name of `kdflow_lab.losses.names`.
        kd_ratio: In 0..1.
        temperature: Divides both logits in the divergence; cross-entropy is at temperature 1.
        temperature_squared: Multiply the divergence by temperature**2.
        num_valid_tokens: What the sums are divided by: the response tokens of the whole global
            batch, so that the value does not depend on how it is split. Default: T.
        chunk_tokens: Rows whose logits are held at once; `auto` fills the budget of
            `losses/_chunks.py`.
        closed_form: False runs every divergence under autograd: the same numbers, slower.
        **params: Of the divergence, such as `beta` of `jsd`.

    Returns:
        See `LossOutput`. Sums are float32 (float64 for float64 hidden states).

    Raises:
        ConfigError: Unknown divergence or parameter, a value out of range, a teacher or labels
            missing.
        ShapeError: Rows, hidden sizes or vocabularies do not fit.
    """
    if not 0.0 <= kd_ratio <= 1.0:
        raise ConfigError(f"kd_ratio is {kd_ratio}; expected a number from 0 to 1.")
    check_temperature(temperature)
    name, params = full_name(divergence), check_params(divergence, params)
    check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, kd_ratio)
    num_valid_tokens = student_hidden.shape[0] if num_valid_tokens is None else num_valid_tokens
    share = 1.0 / (num_valid_tokens or 1.0)
    learns = torch.is_grad_enabled()
    teacher = None
    if teacher_hidden is not None and teacher_head is not None:
        teacher = SameRows(Side.of(teacher_hidden, teacher_head))
    terms = Terms(
        divergence=name,
        params=params,
        temperature=temperature,
        factor=temperature**2 if temperature_squared else 1.0,
        ce_weight=(1.0 - kd_ratio) * share if learns else 0.0,
        kd_weight=kd_ratio * share if learns else 0.0,
        in_place=closed_form,
    )
    return walked_loss(
        student_hidden, Work(student_head, teacher, labels, terms, kd_ratio, share, chunk_tokens)
    )


def walked_loss(student_hidden: Tensor, work: Work) -> LossOutput:
    """Walk over the tokens, and give back the loss with its gradients."""
    head = work.head
    adapter = head.adapter
    return LossOutput(
        *_ChunkedLoss.apply(
            work,
            student_hidden,
            head.weight,
            head.bias,
            None if adapter is None else adapter.inner(student_hidden),
            None if adapter is None else adapter.b,
        )
    )


class Work(NamedTuple):
    """Everything of one call but the student's rows.

    Attributes:
        head: The student's.
        teacher: The teacher's side, or None.
        labels: Int64[T], or None.
        terms: What is computed; its weights say what the gradient is of.
        kd_ratio: The value is (1 - kd_ratio) * ce + kd_ratio * kd.
        share: What every sum is multiplied by: 1 / num_valid_tokens.
        chunk_tokens: Rows of a chunk, or `auto`.
        kd: Scalar, the divergence where it is known beforehand and its gradient is in the terms'
            weights of the cross-entropy; None: the walk computes it.
    """

    head: Head
    teacher: Teacher | None
    labels: Tensor | None
    terms: Terms
    kd_ratio: float
    share: float
    chunk_tokens: int | Literal["auto"]
    kd: Tensor | None = None


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one walk over the chunks; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        inner: Tensor | None,
        outer: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        student = Side.of(hidden, work.head, inner)
        teacher = work.teacher
        gradients = _Gradients(student, weight, bias, outer, ctx.needs_input_grad[1:], work)
        values = walk(
            student, teacher, work.labels, work.terms, gradients.chunking, gradients.take_chunk
        )
        ctx.gradients = gradients.results()
        ce, kd, agreement = (
            work.share * one.sum() for one in (values.ce, values.kd, values.agreement)
        )
        if work.labels is None:
            ce = torch.full_like(ce, torch.nan)
        if teacher is None:
            kd, agreement = torch.full_like(kd, torch.nan), torch.full_like(kd, torch.nan)
        if work.kd is not None:
            kd = work.kd.detach().clone()
        loss = torch.zeros_like(ce)
        if work.kd_ratio < 1.0:
            loss = loss + (1.0 - work.kd_ratio) * ce
        if work.kd_ratio > 0.0:
            loss = loss + work.kd_ratio * kd
        ctx.mark_non_differentiable(ce, kd, agreement)
        return loss, ce, kd, agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore
        scale, gradients = grad_outputs[0], ctx.gradients
        if gradients is None:
            raise RuntimeError(
                "The gradients of chunked_kd_loss were handed out already. Pass retain_graph=True "
                "to the first backward to go through it twice."
            )
        if _graph_is_kept():
            return (None, *(None if one is None else one * scale for one in gradients))
        # Nobody asks again: scale in place, since a head's gradient is large.
        ctx.gradients = None
        # Looking at the scale would make a GPU wait; on a CPU it saves reading all of the gradient.
        if scale.device.type != "cpu" or scale.item() != 1.0:
            for one in gradients:
                if one is not None:
                    one.mul_(scale)
        return (None, *gradients)


class _Gradients:
    """Sums the gradients of hidden states, weight, bias and adapter over the chunks."""

    def __init__(
        self,
        student: Side,
        weight: Tensor,
        bias: Tensor | None,
        outer: Tensor | None,
        wanted: tuple[bool, ...],
        work: Work,
    ) -> None:
        rows, width, dtype = student.hidden.shape[0], student.weight.shape[0], student.hidden.dtype
        terms, teacher = work.terms, work.teacher
        for_hidden, for_weight, for_bias, for_inner, for_outer = (
            wanted if terms.wants_gradient else (False,) * 5
        )
        wide = statistics_dtype(dtype)
        few = terms.closed_form and (teacher is None or isinstance(teacher, SameRows))
        row_bytes = width * dtype.itemsize
        if teacher is not None:
            row_bytes += teacher.row_bytes
        self.chunking = plan(
            work.chunk_tokens,
            num_tokens=rows,
            width=width if teacher is None else max(width, teacher.width),
            row_bytes=row_bytes,
            element_bytes=wide.itemsize,
            extra_bytes=student.hidden.numel() * dtype.itemsize if for_hidden else 0,
            device=student.hidden.device,
            **({"temporaries": CLOSED_FORM_TEMPORARIES} if few else {}),
        )
        num_chunks = -(-rows // self.chunking.chunk_tokens)
        self._student = student
        self._bias_dtype = None if bias is None else bias.dtype
        self.hidden = torch.zeros_like(student.hidden) if for_hidden else None
        self.weight = WeightGradient(weight, width, dtype, num_chunks) if for_weight else None
        self.outer = None
        if outer is not None and for_outer:
            self.outer = WeightGradient(outer, width, dtype, num_chunks)
        self.inner = None
        if student.inner is not None and for_inner:
            self.inner = torch.zeros_like(student.inner)
        self.bias = None
        if bias is not None and for_bias:
            self.bias = torch.zeros_like(bias, dtype=wide)

    def take_chunk(self, rows: slice, grad_CV: Tensor) -> None:
        """Add what a chunk's gradient comes to."""
        student = self._student
        if self.hidden is not None:
            torch.mm(grad_CV, student.weight, out=self.hidden[rows])
        if self.weight is not None:
            self.weight.add(grad_CV, student.hidden[rows])
        if self.bias is not None:
            self.bias[: grad_CV.shape[1]] += grad_CV.sum(dim=0, dtype=self.bias.dtype)
        if student.inner is not None and student.outer is not None:
            if self.inner is not None:
                torch.mm(grad_CV, student.outer, out=self.inner[rows])
            if self.outer is not None:
                self.outer.add(grad_CV, student.inner[rows])

    def results(self) -> tuple[Tensor | None, ...]:
        """The gradients in the order and dtypes of the function's inputs."""
        return (
            self.hidden,
            None if self.weight is None else self.weight.result(),
            None if self.bias is None else self.bias.to(self._bias_dtype),
            self.inner,
            None if self.outer is None else self.outer.result(),
        )


def _graph_is_kept() -> bool:
    """Tell whether this backward may be followed by another one; True where torch cannot say."""
    autograd: Any = getattr(torch._C, "_autograd", None)
    asked = getattr(autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())
