"""The slots of one student rank, in memory that both processes map.

The memory is a memfd: it has no name, so nothing stays behind however a process ends. It is sealed,
so that nobody can shrink it under the other's map (that would be a SIGBUS), and its pages exist
before the first batch (a first touch costs more than ten times a warm write).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kdflow_lab.errors import TransportError
from kdflow_lab.transport import cuda_ipc
from kdflow_lab.transport.layout import EVENTS_BYTES, HEADER_BYTES, SlotLayout

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from kdflow_lab.transport.device import DeviceHandle

TRANSPORT = "shared memory (memfd)"
"""Name of this transport in the `started` event."""
ON_DEVICE = "CUDA IPC, ids in shared memory (memfd)"
"""Name where the rows lie in the student's GPU."""

_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SlotState(IntEnum):
    """Where a slot is on its way; for whoever looks into a ring."""

    FREE = 0
    REQUESTED = 1
    READY = 2
    FAILED = 3


class SlotHeader(NamedTuple):
    """First bytes of a slot, in this order: u64 sequence, u64 step, then u32.

    Attributes:
        sequence: Counts this rank's requests from 1.
        step: Step of the data plan.
        micro_batch: Index within the step.
        rank: The student's rank.
        state: Where the slot is on its way.
        num_tokens: S, tokens in `input_ids`.
        num_sequences: n, rows packed into them.
        num_rows: T, hidden rows that are wanted.
    """

    sequence: int
    step: int
    micro_batch: int
    rank: int
    state: int
    num_tokens: int
    num_sequences: int
    num_rows: int


_HEADER = struct.Struct("<QQIIIIII")
_STATE_OFFSET = 24
assert _HEADER.size <= HEADER_BYTES


class Ring:
    """`slots` slots of one layout, mapped into this process.

    Made by a student (`create`), opened by the teacher from the descriptor it was sent (`attach`).
    """

    def __init__(
        self,
        mapping: mmap.mmap,
        layout: SlotLayout,
        slots: int,
        *,
        fd: int | None = None,
        device: DeviceHandle | None = None,
    ) -> None:
        """Wrap a mapping that is large enough; use `create` or `attach`.

        Args:
            mapping: Shared memory of `slots` slots.
            layout: Of every slot.
            slots: How many.
            fd: The memory's descriptor, closed with the ring; None if nobody will ask for it.
            device: Where the rows lie if the layout says that they lie in a GPU.
        """
        self.layout = layout
        self.slots = slots
        self.device = device
        self._on_device: cuda_ipc.DeviceSlots | None = None
        self._fd = fd
        self._then: list[Callable[[], None]] = []
        self._mapping = mapping
        # Views are made from this array, not by torch.frombuffer: that one does not hold the
        # mapping's export, and a closed or collected map under a live tensor is a SIGSEGV.
        self._memory: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)

    @classmethod
    def create(cls, layout: SlotLayout, *, slots: int, gpu: int | None = None) -> tuple[Ring, int]:
        """Allocate, seal and map a new ring.

        Args:
            layout: Of every slot.
            slots: How many.
            gpu: torch's number of the device in which the rows shall lie, if the layout says so.

        Returns:
            The ring, and its descriptor: send it to the teacher, then close it.

        Raises:
            TransportError: There is not enough memory.
        """
        if slots < 1:
            raise TransportError(f"A ring needs at least one slot, got depth={slots}.")
        size = layout.slot_bytes * slots
        _check_available(size, layout, slots)
        fd = os.memfd_create("kdflow-ring", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            # Not ftruncate: that succeeds beyond any memory, and a later write is then a SIGBUS.
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            os.close(fd)
            raise TransportError(
                f"Cannot allocate the ring's {_mib(size)} of shared memory "
                f"({_sizes(layout, slots)}): {error.strerror}. {_REMEDY}"
            ) from None
        ring = cls(mapping, layout, slots)
        try:
            if layout.on_device:
                ring._make_on_device(gpu)
        except BaseException:
            ring.close()
            os.close(fd)
            raise
        return ring, fd

    @classmethod
    def attach(
        cls,
        fd: int,
        layout: SlotLayout,
        *,
        slots: int,
        keep_fd: bool = False,
        device: DeviceHandle | None = None,
    ) -> Ring:
        """Map the ring behind a descriptor that another process sent.

        Args:
            fd: Of the memory. Closed, also when this fails.
            layout: Of every slot.
            slots: How many.
            keep_fd: Close the descriptor with the ring only, so that `fd` can be handed on.
            device: Where the rows lie, if the layout says that they lie in a GPU. It is opened at
                the first use of a row: a process that only hands rings on needs no GPU.

        Raises:
            TransportError: It is no sealed memory of the size that the layout needs.
        """
        size = layout.slot_bytes * slots
        try:
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if seals & _SIZE_SEALS != _SIZE_SEALS:
                raise TransportError(
                    "The ring's memory is not sealed: expected a memfd that cannot shrink, since "
                    "writing beyond its end would kill this process. Only a ring made by "
                    "kdflow-lab's student can be attached."
                )
            if slots < 1 or os.fstat(fd).st_size != size:
                raise TransportError(
                    f"The ring's memory has {os.fstat(fd).st_size} bytes; expected {size} "
                    f"({_sizes(layout, slots)}). Restart the engines (lab.close(), lab.up())."
                )
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            raise TransportError(
                f"Cannot map the ring's {_mib(size)} of shared memory: {error.strerror}. {_REMEDY}"
            ) from None
        else:
            kept, fd = (fd, -1) if keep_fd else (None, fd)
            return cls(mapping, layout, slots, fd=kept, device=device)
        finally:
            if fd >= 0:
                os.close(fd)

    @property
    def fd(self) -> int:
        """The memory's descriptor, to be sent to another process of this user.

        Raises:
            TransportError: The ring is closed, or was attached without keeping it.
        """
        if self._fd is None:
            raise TransportError("This ring has no descriptor any more that could be handed on.")
        return self._fd

    @property
    def size(self) -> int:
        """Bytes of the mapping."""
        return self.layout.slot_bytes * self.slots

    @property
    def address(self) -> int:
        """Where the mapping starts in this process; a tensor of the ring lies behind it.

        Raises:
            TransportError: The ring is closed: other things may lie there by now.
        """
        return self._memory.ctypes.data + self._start(0)

    def contains(self, tensor: torch.Tensor) -> bool:
        """Tell whether all of a tensor's bytes lie inside the mapping, or the slots of a GPU."""
        if not tensor.numel():  # torch gives it the address 0
            return True
        if self._on_device is not None and tensor.device.type != "cpu":
            return self._on_device.contains(tensor)
        start = tensor.data_ptr() - self.address
        end = start + tensor.numel() * tensor.element_size()
        return tensor.is_contiguous() and start >= 0 and end <= self.size

    def write_request(
        self,
        slot: int,
        *,
        sequence: int,
        step: int,
        micro_batch: int,
        rank: int,
        input_ids: ArrayLike,
        cu_seqlens: ArrayLike,
        rows: ArrayLike,
    ) -> None:
        """Fill a slot's header and request area.

        Args:
            slot: Number of the slot; it must be free.
            sequence: Counts this rank's requests from 1.
            step: Step of the data plan.
            micro_batch: Index within the step.
            rank: The student's rank.
            input_ids: Integer[S], the packed tokens.
            cu_seqlens: Integer[n + 1], where each sequence starts, and S.
            rows: Integer[T], positions in [0, S) whose hidden states are wanted.

        Raises:
            TransportError: The micro-batch does not fit the slot.
        """
        ids, ends, wanted = np.asarray(input_ids), np.asarray(cu_seqlens), np.asarray(rows)
        header = SlotHeader(
            sequence=sequence,
            step=step,
            micro_batch=micro_batch,
            rank=rank,
            state=SlotState.REQUESTED,
            num_tokens=len(ids),
            num_sequences=len(ends) - 1,
            num_rows=len(wanted),
        )
        self._check(header)
        for view, values in zip(self.request(slot, header), (ids, ends, wanted), strict=True):
            view[:] = values
        _HEADER.pack_into(self._mapping, self._start(slot), *header)

    def header(self, slot: int) -> SlotHeader:
        """Read a slot's header.

        Raises:
            TransportError: The counts in it do not fit the slot, or there is no such slot.
        """
        header = SlotHeader(*_HEADER.unpack_from(self._mapping, self._start(slot)))
        self._check(header)
        return header

    def set_state(self, slot: int, state: SlotState) -> None:
        """Say where a slot is on its way."""
        struct.pack_into("<I", self._mapping, self._start(slot) + _STATE_OFFSET, state)

    def request(
        self, slot: int, header: SlotHeader
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Views of a slot's `input_ids` int32[S], `cu_seqlens` int32[n + 1] and `rows` int32[T]."""
        layout = self.layout
        return (
            self._int32(slot, layout.input_ids_offset, header.num_tokens),
            self._int32(slot, layout.cu_seqlens_offset, header.num_sequences + 1),
            self._int32(slot, layout.rows_offset, header.num_rows),
        )

    def hidden(self, slot: int, num_rows: int) -> torch.Tensor:
        """First rows of a slot's hidden states, dtype[num_rows, hidden_size]: the mapping itself.

        The tensor keeps the mapping alive, also after `close`; the next request overwrites it.
        """
        layout = self.layout
        if not 0 <= num_rows <= layout.max_rows:
            raise TransportError(f"A slot holds {layout.max_rows} hidden rows, not {num_rows}.")
        start = self._start(slot) + layout.hidden_offset
        if layout.on_device:
            return self._device_slots().rows(slot, num_rows)
        data = self._memory[start : start + num_rows * layout.row_bytes]
        flat = torch.from_numpy(data).view(getattr(torch, layout.dtype_name))
        return flat.view(num_rows, layout.hidden_size)

    @contextlib.contextmanager
    def writing(self, slot: int) -> Iterator[None]:
        """Write a slot's hidden rows in here; see `DeviceSlots.writing`. Nothing on a CPU."""
        if not self.layout.on_device:
            yield
            return
        with self._device_slots().writing(slot):
            yield

    def start_reading(self, slot: int) -> None:
        """Call before a slot's hidden rows are read; see `DeviceSlots`. Nothing on a CPU."""
        if self.layout.on_device:
            self._device_slots().start_reading(slot)

    def stop_reading(self, slot: int) -> None:
        """Call when a slot's hidden rows were read; see `DeviceSlots`. Nothing on a CPU."""
        if self.layout.on_device:
            self._device_slots().stop_reading(slot)

    def open_device(self) -> None:
        """Open the rows' memory now, if they lie in a GPU.

        Raises:
            TransportError: This process does not see that GPU, or cannot open it.
        """
        if self.layout.on_device:
            self._device_slots()

    def on_close(self, then: Callable[[], None]) -> None:
        """Call `then` when the ring is closed, so that others who mapped it let go as well."""
        self._then.append(then)

    def close(self) -> None:
        """Give the mapping back: at once, or when the last tensor that looks at it is gone."""
        self._memory = np.empty(0, np.uint8)
        self._on_device = None
        with contextlib.suppress(BufferError):
            self._mapping.close()
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        while self._then:
            self._then.pop()()

    def describe(self) -> dict[str, str | int]:
        """Name and sizes of the transport, for the `started` event."""
        said: dict[str, str | int] = {
            "transport": ON_DEVICE if self.layout.on_device else TRANSPORT,
            "slots": self.slots,
            "slot_bytes": self.layout.slot_bytes,
            "bytes": self.size,
        }
        if self.device is not None and self._on_device is not None:
            said |= {"gpu": self.device.gpu, "gpu_bytes": self._on_device.size}
        return said

    def _make_on_device(self, gpu: int | None) -> None:
        """Allocate the rows in a GPU, and put the events' handles into the slots."""
        if gpu is None:
            raise TransportError(
                "The layout puts hidden rows into a GPU, but none was named. Give the student's."
            )
        self._on_device, events = cuda_ipc.create(self.layout, self.slots, gpu)
        self.device = self._on_device.handle
        for slot, packed in enumerate(events):
            self._events(slot)[:] = np.frombuffer(packed, np.uint8)

    def _device_slots(self) -> cuda_ipc.DeviceSlots:
        """The rows in a GPU; opened now if they were not yet."""
        if self._on_device is None:
            if self.device is None:
                raise TransportError(
                    "The layout puts hidden rows into a GPU, but the ring came without the handle "
                    "of its memory. This is a bug of kdflow-lab: please report it."
                )
            events = [self._events(slot).tobytes() for slot in range(self.slots)]
            self._on_device = cuda_ipc.open_slots(self.layout, self.device, events)
        return self._on_device

    def _events(self, slot: int) -> NDArray[np.uint8]:
        """UInt8[EVENTS_BYTES]: handles of a slot's events."""
        start = self._start(slot) + self.layout.hidden_offset
        return self._memory[start : start + EVENTS_BYTES]

    def _check(self, header: SlotHeader) -> None:
        self.layout.check(
            num_tokens=header.num_tokens,
            num_sequences=header.num_sequences,
            num_rows=header.num_rows,
        )

    def _start(self, slot: int) -> int:
        if not self._memory.size:
            raise TransportError("This ring is closed.")
        if not 0 <= slot < self.slots:
            raise TransportError(f"There is no slot {slot} in a ring of {self.slots} slots.")
        return slot * self.layout.slot_bytes

    def _int32(self, slot: int, offset: int, count: int) -> NDArray[np.int32]:
        start = self._start(slot) + offset
        return self._memory[start : start + 4 * count].view(np.int32)


_REMEDY = "Lower micro_batch_tokens or depth, or free memory."


def _check_available(size: int, layout: SlotLayout, slots: int) -> None:
    """Refuse what cannot fit: allocating it would call the kernel's memory killer, not fail."""
    import psutil

    available = psutil.virtual_memory().available
    if size > available:
        raise TransportError(
            f"The ring needs {_mib(size)} of shared memory ({_sizes(layout, slots)}), but only "
            f"{_mib(available)} are available. {_REMEDY}"
        )


def _sizes(layout: SlotLayout, slots: int) -> str:
    return f"{slots} slots of {_mib(layout.slot_bytes)}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
