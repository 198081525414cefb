"""A model's weights in memory that another engine maps: one write, read where they lie.

The rollout engine gets the student's so, and a teacher that follows the student its own.

The memory is a sealed memfd, as the hidden-state ring's: it has no name, so nothing stays behind
however a process ends. It says itself what is in it:

    4s magic, H schema, H buffers, I bytes of the manifest, Q first buffer, Q bytes of a buffer
    q version, of each buffer; -1 while it is empty or being written
    the manifest: JSON, [name, dtype, shape, offset] of each parameter
    the buffers, each all parameters at their offsets

With one buffer the engine must be idle while it is written; with two, one is written while the
other is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.errors import TransportError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_VERSION = -1
"""Of a buffer that holds no weights; of a model that still has those of its folder."""
ALIGNMENT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MAGIC, _SCHEMA = b"KDFW", 1
_HEAD = struct.Struct("<4sHHIQQ")
_VERSION = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter of the segment.

    Attributes:
        name: As in the model's `named_parameters`, without a trace of LoRA or FSDP.
        dtype: Such as `float32`: the reader's, not the student's.
        shape: Of the whole parameter.
        offset: Bytes from the start of a buffer.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the parameter."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize


class WeightSegment:
    """The mapped memory; made by the student's rank 0 (`create`), opened by others (`attach`)."""

    def __init__(self, mapping: mmap.mmap, fd: int) -> None:
        """Wrap a mapping; use `create` or `attach`.

        Raises:
            TransportError: It is no weight segment of this version.
        """
        self._mapping = mapping
        self.fd = fd
        """The memory's descriptor, closed with the segment."""
        # torch.frombuffer would not hold the mapping's export: see `transport.ring`.
        self._memory: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)
        try:
            magic, schema, self.buffers, size, self._first, self._bytes = _HEAD.unpack_from(mapping)
            if (magic, schema) != (_MAGIC, _SCHEMA):
                raise ValueError(f"it begins with {magic!r} {schema}")
            start = _HEAD.size + self.buffers * _VERSION.size
            listed = json.loads(mapping[start : start + size])
            self.entries = [
                Entry(name, dtype, tuple(shape), at) for name, dtype, shape, at in listed
            ]
            needed = self._first + self.buffers * self._bytes
            ends = [entry.offset + entry.num_bytes for entry in self.entries]
            if needed > len(mapping) or max(ends, default=0) > self._bytes:
                raise ValueError("its parameters do not fit it")
        except (struct.error, ValueError, TypeError, AttributeError) as error:
            raise TransportError(
                f"Expected the weights of a kdflow-lab student, but {error}. Run all engines "
                "with the same kdflow-lab."
            ) from None

    @classmethod
    def create(cls, entries: Sequence[Entry], *, buffers: int = 1) -> WeightSegment:
        """Allocate, seal and describe memory for these parameters.

        Raises:
            TransportError: There is not enough memory.
        """
        size = _aligned(max((one.offset + one.num_bytes for one in entries), default=0))
        listed = [[one.name, one.dtype, one.shape, one.offset] for one in entries]
        manifest = json.dumps(listed, separators=(",", ":")).encode()
        first = _aligned(_HEAD.size + buffers * _VERSION.size + len(manifest))
        total = first + buffers * size
        _check_available(total)
        fd = os.memfd_create("kdflow-weights", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            # Not ftruncate: that succeeds beyond any memory, and a later write is then a SIGBUS.
            os.posix_fallocate(fd, 0, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(fd, total)
        except OSError as error:
            os.close(fd)
            raise TransportError(_no_memory(total, error.strerror or "no memory")) from None
        _HEAD.pack_into(mapping, 0, _MAGIC, _SCHEMA, buffers, len(manifest), first, size)
        start = _HEAD.size + buffers * _VERSION.size
        mapping[start : start + len(manifest)] = manifest
        segment = cls(mapping, fd)
        for buffer in range(buffers):
            segment.stamp(buffer, NO_VERSION)
        return segment

    @classmethod
    def attach(cls, fd: int) -> WeightSegment:
        """Map the segment behind a descriptor, which belongs to it from now on.

        Raises:
            TransportError: It is no sealed weight segment; the descriptor is closed.
        """
        try:
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if seals & _SEALS != _SEALS:
                raise TransportError(
                    "The weights' memory is not sealed: expected a memfd that cannot shrink, since "
                    "reading beyond its end would kill this process."
                )
            return cls(mmap.mmap(fd, os.fstat(fd).st_size), fd)
        except (TransportError, OSError, ValueError) as error:
            os.close(fd)
            if isinstance(error, TransportError):
                raise
            raise TransportError(f"The weights' memory cannot be mapped: {error}.") from None

    @property
    def num_bytes(self) -> int:
        """Of all parameters once."""
        return sum(entry.num_bytes for entry in self.entries)

    def view(self, entry: Entry, buffer: int) -> Tensor:
        """A parameter in a buffer, dtype[shape]: the mapping itself, which it keeps alive."""
        start = self._first + buffer * self._bytes + entry.offset
        data = self._memory[start : start + entry.num_bytes]
        return torch.from_numpy(data).view(getattr(torch, entry.dtype)).view(entry.shape)

    def views(self, buffer: int) -> dict[str, Tensor]:
        """All parameters of a buffer by name."""
        return {entry.name: self.view(entry, buffer) for entry in self.entries}

    def version(self, buffer: int) -> int:
        """Which weights a buffer holds; `NO_VERSION` for none, or while they are written."""
        return _VERSION.unpack_from(self._mapping, self._stamp_at(buffer))[0]

    def stamp(self, buffer: int, version: int) -> None:
        """Say which weights a buffer holds."""
        _VERSION.pack_into(self._mapping, self._stamp_at(buffer), version)

    def check(self, buffer: int, version: int) -> None:
        """Refuse a buffer that does not hold this version, whole.

        Raises:
            TransportError: It holds another, or is being written.
        """
        found = self.version(buffer)
        if found != version:
            raise TransportError(
                f"Buffer {buffer} of the weights holds version {found}, expected {version}: it was "
                "written while it was read. This is a bug of kdflow-lab: please report it."
            )

    def close(self) -> None:
        """Give the memory back: at once, or with the last tensor that looks at it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._memory = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def _stamp_at(self, buffer: int) -> int:
        if not 0 <= buffer < self.buffers:
            raise TransportError(f"There is no buffer {buffer} in a segment of {self.buffers}.")
        return _HEAD.size + buffer * _VERSION.size


def laid_out(shapes: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> list[Entry]:
    """Give each parameter its place in a buffer.

    Args:
        shapes: Name and shape of each.
        dtype: Of all of them.
    """
    entries, offset = [], 0
    for name, shape in shapes:
        entries.append(Entry(name, str(dtype).removeprefix("torch."), tuple(shape), offset))
        offset = _aligned(offset + entries[-1].num_bytes)
    return entries


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _check_available(size: int) -> None:
    """Refuse what cannot fit: allocating it would call the kernel's memory killer, not fail."""
    import psutil

    available = psutil.virtual_memory().available
    if size > available:
        raise TransportError(_no_memory(size, f"only {available / 2**20:,.0f} MiB are available"))


def _no_memory(size: int, why: str) -> str:
    return (
        f"The weights for another engine need {size / 2**20:,.1f} MiB of shared memory, but {why}. "
        "Free memory, or use a smaller student; on-policy, max_staleness=0 needs one buffer less."
    )
