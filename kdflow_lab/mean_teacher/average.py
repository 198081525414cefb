"""The moving average of the student's weights, sharded as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdflow_lab.errors import ModelError
from kdflow_lab.rollout.weights import Source, merged, reshard, rows_each, sources, write_sources
from kdflow_lab.transport.segment import laid_out

if TYPE_CHECKING:
    from kdflow_lab.transport.segment import Entry, WeightSegment


class Average:
    """A teacher's weights in float32, each rank with the rows that it has of the student's.

    Attributes:
        tensors: Float32[shape], DTensors where the student's parameters are; by their names in the
            plain model. Tied parameters are there once.
    """

    def __init__(self, model: torch.nn.Module, start: torch.nn.Module) -> None:
        """Begin with the weights of a teacher.

        Args:
            model: The student's, sharded by rows or whole on every rank.
            start: A plain model of the same architecture, whole; it is copied from.

        Raises:
            ModelError: Their parameters are not the same.
        """
        self._model = model
        reshard(model)
        found = sources(model)
        whole = dict(start.named_parameters(remove_duplicate=False))
        check_same(found, whole)
        self.tensors = {source.name: _shard(source, whole[source.name]) for source in found}

    @torch.no_grad()
    def update(self, ema: float) -> None:
        """Move towards the student's weights: `average <- ema * average + (1 - ema) * student`.

        LoRA adapters are merged for it. Every rank does its own rows; nothing travels.

        Args:
            ema: From 0, which copies the student's, to below 1.

        Source: the mean teacher of Tarvainen & Valpola 2017 (arXiv:1703.01780, section 2), there
        called alpha; updated every so many steps instead of every step.
        """
        reshard(self._model)
        for source in sources(self._model):
            mine = _local(self.tensors[source.name])
            student = merged(source, _local(source.parameter).detach())
            if ema == 0.0:
                mine.copy_(student)
            else:
                mine.mul_(ema).add_(student, alpha=1.0 - ema)

    def entries(self, dtype: torch.dtype) -> list[Entry]:
        """Lay a segment out for it, in the teacher's dtype."""
        return laid_out([(name, tuple(one.shape)) for name, one in self.tensors.items()], dtype)

    def write(self, segment: WeightSegment | None, *, dtype: torch.dtype, version: int) -> None:
        """Put it into a segment, bucket by bucket; every rank calls it.

        Args:
            segment: Made for `entries(dtype)`; None on all ranks but the first.
            dtype: Of the teacher; what travels is cast already.
            version: Of the weights.
        """
        found = [Source(name, one) for name, one in self.tensors.items()]
        write_sources(found, segment, dtype=dtype, version=version)


def check_same(found: list[Source], whole: dict[str, Any]) -> None:
    """Refuse a model whose parameters are not those of the student.

    Args:
        found: The student's.
        whole: By name, tied ones under each name.

    Raises:
        ModelError: One is missing or has another shape.
    """
    for source in found:
        theirs = whole.get(source.name)
        if theirs is None or tuple(theirs.shape) != source.shape:
            has = "no such parameter" if theirs is None else f"one of {tuple(theirs.shape)}"
            raise ModelError(
                f"The student has the parameter {source.name} of {source.shape}, the teacher "
                f"{has}. Expected two models of one architecture (teacher_update_every)."
            )
    covered = {id(whole[source.name]) for source in found}
    if missing := [name for name, one in whole.items() if id(one) not in covered]:
        raise ModelError(
            f"The teacher has the parameter {missing[0]}, the student has not. Expected two models "
            "of one architecture (teacher_update_every)."
        )


def _shard(source: Source, whole: Tensor) -> Tensor:
    """Copy this rank's rows of a parameter, in float32, to where the student has its own."""
    parameter = source.parameter
    made = torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)
    local = _local(made)
    rows = whole.detach()
    if hasattr(parameter, "to_local"):
        rows = rows[dist.get_rank() * rows_each(whole.shape[0]) :][: local.shape[0]]
    local.copy_(rows)
    return made


def _local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
