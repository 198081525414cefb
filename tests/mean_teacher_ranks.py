"""What ranks of a student do with the moving average; run by `ranks.on_ranks`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from kdflow_lab.config import DistillConfig
from kdflow_lab.load import load_model
from kdflow_lab.mean_teacher.average import Average
from kdflow_lab.student.fsdp import Student
from kdflow_lab.transport.segment import WeightSegment

UPDATES = 4


class Seen(NamedTuple):
    """What a rank has in the end.

    Attributes:
        average: Float32, whole, by name.
        handed_over: What lies in the segment, by name; rank 0's alone.
        rows: This rank's share of all elements.
    """

    average: dict[str, Tensor]
    handed_over: dict[str, Tensor]
    rows: float


def averaged(student: str, teacher: str, ema: float) -> Seen:
    """Move a sharded average along as the student changes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    config = DistillConfig.parse()
    model: Any = Student(student, config=config, mesh=mesh).model
    average = Average(model, load_model(teacher))
    for update in range(UPDATES):
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()
        for name, change in changes(model, update).items():
            parameter = dict(model.named_parameters())[name]
            mine = change.chunk(mesh.size())
            rank = dist.get_rank()
            if rank < len(mine):
                parameter.to_local().detach().add_(mine[rank])
        average.update(ema)
    segment = None
    if dist.get_rank() == 0:
        segment = WeightSegment.create(average.entries(torch.bfloat16))
    average.write(segment, dtype=torch.bfloat16, version=7)
    handed_over = {} if segment is None else segment.views(0)
    assert segment is None or segment.version(0) == 7
    tensors: dict[str, Any] = average.tensors
    here = sum(one.to_local().numel() for one in tensors.values())
    return Seen(
        average={name: one.full_tensor() for name, one in tensors.items()},
        handed_over={name: one.clone() for name, one in handed_over.items()},
        rows=here / sum(one.numel() for one in tensors.values()),
    )


def changes(model: Any, update: int) -> dict[str, Tensor]:
    """What is added to each whole parameter before an update; the same on every rank."""
    generator = torch.Generator().manual_seed(update)
    return {
        name: 0.1 * torch.randn(tuple(parameter.shape), generator=generator)
        for name, parameter in model.named_parameters()
    }
