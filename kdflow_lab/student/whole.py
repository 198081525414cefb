"""A sharded student as a plain model for a while: every rank holds all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule

from kdflow_lab.attention import NAME

if TYPE_CHECKING:
    from kdflow_lab.student.fsdp import Student


@contextlib.contextmanager
def whole(student: Student) -> Iterator[Any]:
    """Give the student's model with whole parameters, in eval mode, as one that can generate.

    Every rank enters and leaves together; in between a rank runs the model on its own, as often as
    it likes, without any collective. It costs every rank the memory of the whole student in its
    compute dtype. Left behind, parameters are sharded, and modules, attention and random numbers
    are as they were.

    Args:
        student: One that has run forward before, so that FSDP knows its root.
    """
    model: Any = student.model
    modules: list[torch.nn.Module] = list(model.modules())
    modes = [module.training for module in modules]
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    layers = [module for module in sharded if module is not model]  # the root stays whole anyway
    gpus = [student.device] if student.device.type == "cuda" else []
    model.eval()
    try:
        for module in layers:
            module.set_reshard_after_forward(False, recurse=False)
        for module in sharded:
            module.unshard()
        if not student.why_padded:
            model.set_attn_implementation(student.own_attention)
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            yield model
    finally:
        if not student.why_padded:
            model.set_attn_implementation(NAME)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for module in layers:
            module.set_reshard_after_forward(True, recurse=False)
        for module in sharded:
            module.reshard()
