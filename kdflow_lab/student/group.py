"""The process group of the students, and what they share through it."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

if TYPE_CHECKING:
    from kdflow_lab.jobs import StudentPlace

ValueT = TypeVar("ValueT")

TIMEOUT = datetime.timedelta(seconds=60)
"""How long a rank waits in a collective. A signal does not reach it there, so not for long."""


@contextlib.contextmanager
def student_group(place: StudentPlace) -> Iterator[DeviceMesh]:
    """Join the students' process group for the life of a job, on this thread.

    Leaving by an exception destroys the group, so that the peers' collectives fail at once instead
    of waiting for a rank that will not come.
    """
    if place.device == "cuda":
        torch.cuda.set_device(place.rank)
    dist.init_process_group(
        # CPU tensors and objects always travel by gloo, so that rank 0 can share text on a GPU too.
        "cpu:gloo,cuda:nccl" if place.device == "cuda" else "gloo",
        init_method=f"file://{place.rendezvous}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=TIMEOUT,
    )
    try:
        yield init_device_mesh(place.device, (place.world_size,))
    finally:
        dist.destroy_process_group()


def share(value: ValueT | None) -> ValueT:
    """Give every rank the small object that rank 0 holds; pickled, so never for tensors."""
    if dist.get_world_size() == 1:
        return value  # type: ignore[return-value]
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def share_arrays(arrays: dict[str, Any] | None) -> dict[str, Any]:
    """Give every rank the numpy arrays that rank 0 holds, without pickling them."""
    if dist.get_world_size() == 1:
        return arrays or {}
    shapes = share(
        None if arrays is None else {name: (a.shape, str(a.dtype)) for name, a in arrays.items()}
    )
    shared = {}
    for name, (shape, dtype) in shapes.items():
        if arrays is not None:
            tensor = torch.from_numpy(arrays[name].copy())
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(tensor, src=0)
        shared[name] = tensor.numpy()
    return shared


def gather(value: ValueT) -> list[ValueT]:
    """Collect a small object from every rank, on every rank."""
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, value)
    return everything
