"""One distillation step: the method itself, on one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from kdflow_lab.align.pairing import span_counts

if TYPE_CHECKING:
    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.losses import Head
    from kdflow_lab.student.feed import TeacherFeed
    from kdflow_lab.student.fsdp import Student


@dataclass(slots=True)
class StepResult:
    """What a step came to, the same on every rank but for `batches`.

    Attributes:
        loss: Of the whole batch, nats a response token; also `ce` and `kd`.
        agreement: Share of response tokens whose top token is the teacher's.
        extra: What else the algorithm measured, such as `aligned`: sums over the batch divided by
            its response tokens, by name.
        grad_norm: Norm of the whole gradient before clipping.
        total_tokens: Tokens that all ranks ran through their model, prompts included.
        batches: This rank's micro-batches.
    """

    loss: float
    ce: float
    kd: float
    agreement: float
    extra: dict[str, float]
    grad_norm: float
    total_tokens: int
    batches: list[MicroBatch]


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
    the teacher's rows touch are computed by then. The update is left out, on all ranks, if the loss
    or the gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(5, dtype=torch.float64)  # loss, ce, kd, agreement, tokens
    extra: dict[str, Tensor] = {}
    batches = []
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
            sums[:4] += values.double().cpu()
        for name, value in {**output.extra, **_spans(batch, num_valid_tokens)}.items():
            extra[name] = extra.get(name, 0.0) + value.double().cpu()
        sums[4] += batch.input_ids.numel()
        batches.append(batch)
    parameters = student.model.parameters()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    norm = float(grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm)
    names = sorted(extra)  # every rank has the same: also an empty micro-batch names them all
    sums = torch.cat([sums, *(extra[name].reshape(1) for name in names)])
    dist.all_reduce(sums)
    loss, ce, kd, agreement, total_tokens, *others = sums.tolist()
    if math.isfinite(norm) and math.isfinite(loss):
        optimizer.step()
    measured = _with_coverage(dict(zip(names, others, strict=True)))
    return StepResult(loss, ce, kd, agreement, measured, norm, int(total_tokens), batches)


def _spans(batch: MicroBatch, num_valid_tokens: int) -> dict[str, Tensor]:
    """What is aligned in a micro-batch of two tokenizers, as shares that add up over the step."""
    if batch.pairing is None:
        return {}
    counted = span_counts(batch.pairing)
    share = 1.0 / max(1, num_valid_tokens)
    return {
        name: torch.tensor(share * count, dtype=torch.float64) for name, count in counted.items()
    }


def _with_coverage(measured: dict[str, float]) -> dict[str, float]:
    """Replace the sums of places by the share that is covered."""
    if "places" not in measured:
        return measured
    places, covered = measured.pop("places"), measured.pop("covered")
    return {**measured, "coverage": covered / places if places else 1.0}
