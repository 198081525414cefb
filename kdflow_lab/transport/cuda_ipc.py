"""The hidden rows of a ring in the memory of a student's GPU, opened once by the teacher.

    student                                         teacher
    allocates rows and two events a slot,
    sends their handles                 ──────►     opens them at its first write
                                                    its stream waits for `freed`
                                                    writes the rows, records `written`
    its stream waits for `written`      ◄── DONE ──
    computes the loss, records `freed`
    and asks for the next       ── REQUEST ──►      …

The events order the two devices' work; the messages order the processes. No process waits for a
device here. Ids, `cu_seqlens` and the events' handles lie in the host ring; rows lie here.

**This has not run on a GPU**; what runs without one is tested (tests/unit/transport).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from kdflow_lab.transport import driver
from kdflow_lab.transport.device import Choice, DeviceHandle, Writer, choose, number_of
from kdflow_lab.transport.layout import SlotLayout


class Event(Protocol):
    """What is used of `torch.cuda.Event`."""

    def record(self, stream: Any) -> None:
        """Happen when the work that is queued on a stream is done."""
        ...

    def wait(self, stream: Any) -> None:
        """Let a stream wait; at once if it was never recorded."""
        ...


class DeviceSlots:
    """The rows of a ring's slots on one GPU, and the events that guard them."""

    def __init__(
        self,
        layout: SlotLayout,
        memory: torch.Tensor,
        *,
        written: Sequence[Event],
        freed: Sequence[Event],
        stream: Callable[[], Any],
        handle: DeviceHandle,
    ) -> None:
        """Put the parts together; use `create` or `open_slots`.

        Args:
            layout: Of every slot.
            memory: UInt8[slots * device_slot_bytes].
            written: One event a slot: its rows are there.
            freed: One event a slot: its rows were used.
            stream: Gives the stream of the rows' device that this thread works on.
            handle: By which others find the memory.
        """
        self.handle = handle
        self._layout = layout
        self._memory = memory
        self._written, self._freed, self._stream = written, freed, stream

    @property
    def size(self) -> int:
        """Bytes on the device."""
        return self._memory.numel()

    def rows(self, slot: int, num_rows: int) -> torch.Tensor:
        """First rows of a slot, dtype[num_rows, hidden_size]: the memory itself."""
        layout = self._layout
        start = slot * layout.device_slot_bytes
        data = self._memory[start : start + num_rows * layout.row_bytes]
        return data.view(getattr(torch, layout.dtype_name)).view(num_rows, layout.hidden_size)

    def contains(self, tensor: torch.Tensor) -> bool:
        """Tell whether all of a tensor's bytes lie in this memory."""
        start = tensor.data_ptr() - self._memory.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        return tensor.device == self._memory.device and start >= 0 and end <= self.size

    @contextlib.contextmanager
    def writing(self, slot: int) -> Iterator[None]:
        """Queue writes between what the reader still does with the slot and what it will do.

        Nothing is recorded if the body raises: the slot is then failed, not read.
        """
        self._freed[slot].wait(self._stream())
        yield
        self._written[slot].record(self._stream())

    def start_reading(self, slot: int) -> None:
        """Let what is queued from now on see the rows."""
        self._written[slot].wait(self._stream())

    def stop_reading(self, slot: int) -> None:
        """Let the writer have the slot when what was queued until now is done."""
        self._freed[slot].record(self._stream())


def create(layout: SlotLayout, slots: int, gpu: int) -> tuple[DeviceSlots, list[bytes]]:
    """Allocate a student's rows and events.

    Returns:
        The slots, and for each the handles of `written` and `freed`, one behind the other.

    Raises:
        TransportError: There is no driver, or not enough memory.
    """
    num_bytes = max(1, slots * layout.device_slot_bytes)
    memory = driver.allocate(num_bytes, gpu)
    handle = DeviceHandle(uuids()[gpu], driver.export(memory, gpu))
    with torch.cuda.device(gpu):
        written = [torch.cuda.Event(interprocess=True) for _ in range(slots)]
        freed = [torch.cuda.Event(interprocess=True) for _ in range(slots)]
        handles = [
            bytes(one.ipc_handle()) + bytes(other.ipc_handle())
            for one, other in zip(written, freed, strict=True)
        ]
    made = DeviceSlots(
        layout, memory, written=written, freed=freed, stream=_stream_of(gpu), handle=handle
    )
    return made, handles


def open_slots(layout: SlotLayout, handle: DeviceHandle, events: Sequence[bytes]) -> DeviceSlots:
    """Open what another process has made.

    Args:
        layout: Of every slot.
        handle: Of the memory.
        events: Handles of each slot's events, as `create` returns them.

    Raises:
        TransportError: This process does not see the device, or the driver refuses.
    """
    gpu = number_of(handle.gpu, uuids())
    memory = driver.open_memory(handle.memory, max(1, len(events) * layout.device_slot_bytes), gpu)
    written, freed = [], []
    for packed in events:
        half = len(packed) // 2
        written.append(torch.cuda.Event.from_ipc_handle(gpu, packed[:half]))
        freed.append(torch.cuda.Event.from_ipc_handle(gpu, packed[half:]))
    return DeviceSlots(
        layout, memory, written=written, freed=freed, stream=_stream_of(gpu), handle=handle
    )


def write_rows(hidden: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Do `out[:] = hidden[index]` with one write into the slot.

    On one device, also a CPU, selecting the wanted rows and putting them into the slot is one step.
    Between devices they are put side by side on the writer's, and one copy takes them into the
    slot.

    Args:
        hidden: dtype[S, H].
        index: Integer[T], positions in [0, S), on any device.
        out: dtype[T, H], on any device.
    """
    index = index.to(hidden.device)
    if hidden.device == out.device:
        torch.index_select(hidden, 0, index, out=out)
    else:
        out.copy_(hidden.index_select(0, index))


def uuids() -> list[str]:
    """UUIDs of this process's GPUs, by torch's numbers; empty where there is none."""
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]


def writer_on(gpu: int | None, seen: Sequence[int] | None = None) -> Writer | None:
    """Describe the teacher's process that writes.

    Args:
        gpu: Its device by this process's numbers; None for a CPU, or if several processes write.
        seen: The only devices that it can use; None for all of this process's.
    """
    if gpu is None:
        return None
    all_ = uuids()
    return Writer(all_[gpu], tuple(all_[number] for number in seen or range(len(all_))))


def choose_here(asked: str, *, gpu: int | None, writer: Writer | None) -> Choice:
    """Choose how the rows of the student in this process travel; see `choose`.

    Args:
        asked: The lab's `transport`.
        gpu: The student's device by this process's numbers; None for a CPU.
        writer: Of the teacher.
    """
    all_ = [] if gpu is None else uuids()

    def can_peer(one: str, other: str) -> bool:
        return torch.cuda.can_device_access_peer(number_of(one, all_), number_of(other, all_))

    return choose(
        asked,
        student_gpu=None if gpu is None else all_[gpu],
        writer=writer,
        can_peer=can_peer,
        why_no_driver="" if gpu is None else driver.why_not(),
    )


def _stream_of(gpu: int) -> Callable[[], Any]:
    return lambda: torch.cuda.current_stream(gpu)
