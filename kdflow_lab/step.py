"""One distillation step: the method itself, on one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.losses import Head
    from kdflow_lab.student.feed import TeacherFeed
    from kdflow_lab.student.fsdp import Student


@dataclass(slots=True)
class StepResult:
    """This rank's share of a step's sums, and what is global already.

    Attributes:
        sums: Float64[4]: loss, ce, kd, agreement; over all ranks they add up to the step's values.
        grad_norm: Norm of the whole gradient before clipping.
        num_tokens: Tokens this rank ran through its model, prompts included.
    """

    sums: torch.Tensor
    grad_norm: float
    num_tokens: int


def distill_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    feed: TeacherFeed,
    teacher_head: Head | None,
    *,
    micro_batches: int,
    num_valid_tokens: int,
    max_grad_norm: float,
) -> StepResult:
    """Run the step's micro-batches, sum their gradients, clip, and update the weights.

    A slot of the ring is given back right after the loss: the gradients with respect to everything
    the teacher's rows touch are computed by then. Skips the update if the gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(4, dtype=torch.float64)
    num_tokens = 0
    for _ in range(micro_batches):
        batch, rows = feed.next()
        teacher_hidden = None if rows is None else rows.tensor
        output = student.loss(batch, algorithm, teacher_hidden, teacher_head, num_valid_tokens)
        del teacher_hidden
        if rows is not None:
            rows.release()
            feed.refill()
        student.backward(output.loss)
        values = torch.stack([output.loss.detach(), output.ce, output.kd, output.agreement])
        if batch.labels.numel():  # an empty micro-batch has nothing to add, not even NaN
            sums += values.double().cpu()
        num_tokens += batch.input_ids.numel()
    parameters = student.model.parameters()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    norm = float(grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm)
    if math.isfinite(norm):
        optimizer.step()
    return StepResult(sums, norm, num_tokens)
