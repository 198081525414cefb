"""Which GPU holds a ring's hidden rows, and which way they take. No CUDA is called here.

A GPU is known by its UUID: its number differs between processes (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdflow_lab.errors import TransportError, unknown_name

TRANSPORTS = ("auto", "shared_memory", "cuda_ipc")
HANDLE_BYTES = 64
"""Of a CUDA IPC handle, of memory or of an event."""


class DeviceHandle(NamedTuple):
    """How another process finds the rows' memory.

    Attributes:
        gpu: UUID of the device.
        memory: CUDA IPC handle of the one allocation that holds all slots' rows.
    """

    gpu: str
    memory: bytes

    def pack(self) -> bytes:
        """Return 16 bytes of UUID and the handle."""
        return uuid.UUID(self.gpu).bytes + self.memory

    @classmethod
    def unpack(cls, packed: bytes) -> DeviceHandle:
        """Read what `pack` wrote.

        Raises:
            TransportError: These bytes are no handle.
        """
        if len(packed) != PACKED_BYTES:
            raise TransportError(
                f"Expected the handle of a GPU's memory, {PACKED_BYTES} bytes, got {packed[:32]!r}."
            )
        return cls(str(uuid.UUID(bytes=packed[:16])), packed[16:])


PACKED_BYTES = 16 + HANDLE_BYTES
"""Bytes of `DeviceHandle.pack`."""


class Writer(NamedTuple):
    """The one process of a teacher that writes hidden rows from a GPU.

    Attributes:
        gpu: UUID of its device.
        sees: UUIDs of all devices that it can use.
    """

    gpu: str
    sees: tuple[str, ...]


class Choice(NamedTuple):
    """Which way the rows take, and why, in words."""

    transport: str
    why: str


def choose(
    asked: str,
    *,
    student_gpu: str | None,
    writer: Writer | None,
    can_peer: Callable[[str, str], bool],
    why_no_driver: str = "",
) -> Choice:
    """Choose how one student's rows travel.

    Args:
        asked: `auto`, `shared_memory` or `cuda_ipc`.
        student_gpu: UUID of the student's device; None on a CPU.
        writer: Of the teacher; None if it computes on a CPU or several processes write.
        can_peer: Tells whether the first GPU can write into the second's memory.
        why_no_driver: Why the driver cannot be called; empty if it can.

    Raises:
        ConfigError: There is no such transport.
        TransportError: `cuda_ipc` was asked for and cannot be used.
    """
    if asked not in TRANSPORTS:
        raise unknown_name("transport", asked, TRANSPORTS)
    if asked == "shared_memory":
        return Choice(asked, "asked for")
    why = _why_not(student_gpu, writer, can_peer) or why_no_driver
    if not why and asked == "cuda_ipc":
        return Choice("cuda_ipc", "asked for")
    if not why:  # the ring in host memory ran on a GPU, cuda_ipc has not yet
        return Choice("shared_memory", "auto: cuda_ipc would fit, but is taken only by its name")
    if asked == "cuda_ipc":
        raise TransportError(
            f"transport='cuda_ipc' cannot be used: {why.rstrip('.')}. Use transport='auto' or "
            "'shared_memory': the rows then go through host memory."
        )
    return Choice("shared_memory", f"auto: {why}")


def number_of(gpu: str, seen: Sequence[str]) -> int:
    """Return this process's number of a GPU.

    Args:
        gpu: Its UUID.
        seen: UUIDs of this process's devices, by number.

    Raises:
        TransportError: This process does not see it.
    """
    if gpu not in seen:
        raise TransportError(
            f"This process does not see GPU {gpu}, which holds the students' slots; it sees "
            f"{', '.join(seen) or 'none'}. Let CUDA_VISIBLE_DEVICES show it to teacher and "
            "students, or use transport='shared_memory'."
        )
    return list(seen).index(gpu)


def _why_not(
    student_gpu: str | None, writer: Writer | None, can_peer: Callable[[str, str], bool]
) -> str:
    """Say what speaks against CUDA IPC; empty if nothing does."""
    if student_gpu is None:
        return "the students compute on a CPU"
    if writer is None:
        return "no single process of the teacher writes from a GPU"
    if student_gpu not in writer.sees:
        return (
            f"the teacher's process does not see the student's GPU {student_gpu} "
            "(teacher_devices or CUDA_VISIBLE_DEVICES hides it)"
        )
    if writer.gpu != student_gpu and not can_peer(writer.gpu, student_gpu):
        return f"GPU {writer.gpu} has no peer access to GPU {student_gpu}"
    return ""
