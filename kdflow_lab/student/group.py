"""The process group of the students, and what they share through it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from kdflow_lab.errors import KDFlowLabError

if TYPE_CHECKING:
    from kdflow_lab.jobs import StudentPlace

ValueT = TypeVar("ValueT")
_BROKEN = (
    "gloo",
    "pair closure",
    "closed by peer",
    "reset by peer",
    "timed out waiting",
    "wait timeout",
)
MEET_S = 0.05
"""How often ranks meet that wait for one of them."""


@contextlib.contextmanager
def student_group(place: StudentPlace, *, timeout_s: float = 60.0) -> Iterator[DeviceMesh]:
    """Join the students' process group for the life of a job, on this thread.

    Args:
        place: Where this rank is.
        timeout_s: How long a rank waits in a collective. A signal does not reach it there.

    Leaving by an exception closes the group's connections, so that the peers' collectives fail at
    once instead of waiting for a rank that will not come. Destroying the group does not do that as
    long as anything refers to it, such as the model in the traceback.
    """
    before = _sockets()
    if place.device == "cuda":
        torch.cuda.set_device(place.torch_device)
    dist.init_process_group(
        # CPU tensors and objects always travel by gloo, so that rank 0 can share text on a GPU too.
        "cpu:gloo,cuda:nccl" if place.device == "cuda" else "gloo",
        init_method=f"file://{place.rendezvous}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    try:
        yield init_device_mesh(place.device, (place.world_size,))
    except BaseException:
        _hang_up(_sockets() - before)
        raise
    finally:
        dist.destroy_process_group()


def _sockets() -> set[tuple[int, str]]:
    """The sockets of this process: file descriptor and inode."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.add((int(name), target))
    return found


def _hang_up(sockets: set[tuple[int, str]]) -> None:
    """Shut connections down that somebody else owns, and will close."""
    for fd, _ in sockets & _sockets():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            if connection.family == socket.AF_INET or connection.family == socket.AF_INET6:
                connection.getpeername()  # raises if it only listens
                connection.shutdown(socket.SHUT_RDWR)


def is_broken(error: BaseException) -> bool:
    """Whether a collective says that another rank is gone or late; it has no class of error."""
    text = str(error).lower()
    theirs = isinstance(error, RuntimeError) and not isinstance(error, KDFlowLabError)
    return isinstance(error, dist.DistError) or (theirs and any(sign in text for sign in _BROKEN))


def share(value: ValueT | None) -> ValueT:
    """Give every rank the small object that rank 0 holds; pickled, so never for tensors."""
    if dist.get_world_size() == 1:
        return value  # type: ignore[return-value]
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def made_by_leader(make: Callable[[], ValueT]) -> ValueT | None:
    """Let rank 0 make something, however long it takes; return it there, and None elsewhere.

    The ranks meet meanwhile: in one collective the others would not wait longer than its timeout.
    """
    if dist.get_world_size() == 1:
        return make()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make) if dist.get_rank() == 0 else None
        while not share(None if made is None else made.done()):
            time.sleep(MEET_S)
        return None if made is None else made.result()


def made_once(make: Callable[[], ValueT]) -> ValueT:
    """Make something small on rank 0, however long it takes, and give it to all, or the error."""
    problem, value = None, None
    try:
        value = made_by_leader(make)
    except Exception as error:
        problem = error
    problem = share(problem)
    if problem is not None:
        raise problem
    return share(value)


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
