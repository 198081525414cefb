"""Rows in a GPU, as far as a CPU can tell: where they lie, what guards them, what is refused.

What CUDA itself does is in tests/gpu/test_cuda_ipc.py.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import random
import socket
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow_lab.errors import TransportError
from kdflow_lab.teacher.base import serve
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.teacher.sglang.hooks import Rings
from kdflow_lab.transport import driver, sockets
from kdflow_lab.transport.cuda_ipc import DeviceSlots, choose_here, write_rows, writer_on
from kdflow_lab.transport.device import HANDLE_BYTES, DeviceHandle
from kdflow_lab.transport.layout import EVENTS_BYTES, SlotLayout
from kdflow_lab.transport.messages import Hello, Kind, Message
from kdflow_lab.transport.request import Request
from kdflow_lab.transport.ring import Ring
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import TeacherEnd

H = 3
LAYOUT = SlotLayout(
    max_tokens=8,
    max_sequences=2,
    max_rows=5,
    hidden_size=H,
    dtype_name="bfloat16",
    on_device=True,
)
NOWHERE = DeviceHandle(str(uuid.UUID(int=7)), b"m" * HANDLE_BYTES)
"""Memory of a GPU that no machine has."""
WAIT_S = 60.0
"""Only a test that fails waits this long."""

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="it says what happens without a GPU")


def _slots(count: int, **changes: Any) -> DeviceSlots:
    memory = torch.zeros(count * LAYOUT.device_slot_bytes, dtype=torch.uint8)
    parts: dict[str, Any] = {"written": [], "freed": [], "stream": lambda: None}
    return DeviceSlots(LAYOUT, memory, handle=NOWHERE, **(parts | changes))


def _ring(slots: int = 2) -> tuple[Ring, Ring]:
    """A student's ring without its GPU, and the same as the teacher attaches it."""
    size = LAYOUT.slot_bytes * slots
    fd = os.memfd_create("kdflow-test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    given_: dict[str, Any] = {"slots": slots, "device": NOWHERE, "keep_fd": True}
    return Ring.attach(os.dup(fd), LAYOUT, **given_), Ring.attach(fd, LAYOUT, **given_)


def _ask(ring: Ring) -> None:
    ring.write_request(
        0,
        sequence=1,
        step=0,
        micro_batch=0,
        rank=0,
        input_ids=[5, 6, 7],
        cu_seqlens=[0, 3],
        rows=[1, 2],
    )


# Where things lie


def test_host_slots_hold_no_rows_and_device_slots_nothing_else() -> None:
    host = dataclasses.replace(LAYOUT, on_device=False, max_rows=4096)
    device = dataclasses.replace(host, on_device=True)
    assert host.slot_bytes - device.slot_bytes >= 4096 * H * 2 - 2 * 4096
    assert device.slot_bytes >= device.hidden_offset + EVENTS_BYTES
    assert device.device_slot_bytes == 4096 * H * 2
    assert LAYOUT.device_slot_bytes == 256  # 30 bytes, up to what CUDA aligns to
    assert SlotLayout.unpack(device.pack()) == device


def test_a_layout_is_on_a_device_or_not() -> None:
    packed = LAYOUT.pack()
    assert packed[-1:] == b"\1"
    with pytest.raises(TransportError, match="Expected a slot layout"):
        SlotLayout.unpack(packed[:-1] + b"\2")


def test_rows_of_a_slot_are_the_memory_itself() -> None:
    slots = _slots(3)
    for slot in range(3):
        slots.rows(slot, 5).fill_(slot + 1)
    for slot in range(3):
        rows = slots.rows(slot, 4)
        assert rows.shape == (4, H)
        assert rows.dtype == torch.bfloat16
        assert bool((rows == slot + 1).all())
        assert slots.contains(rows)
        assert not slots.contains(rows.clone())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_write_rows_selects_in_any_order(count: int) -> None:
    hidden = torch.randn(6, H)
    index = torch.tensor([5, 0, 3, 3][:count], dtype=torch.int64)
    out = torch.empty(count, H)
    write_rows(hidden, index, out)
    assert torch.equal(out, hidden[index])


# What guards them


class _Stream:
    """Work of a device: done in order, some time after it was queued."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], bool]] = deque()

    def put(self, work: Callable[[], bool]) -> None:
        """Queue work that returns False while it has to wait."""
        self.queue.append(work)

    def run_one(self) -> bool:
        if self.queue and self.queue[0]():
            self.queue.popleft()
            return True
        return False


class _Event:
    """CUDA's rules: a wait is for the record that came last before the wait was queued."""

    def __init__(self) -> None:
        self.recorded = self.reached = 0

    def record(self, stream: _Stream) -> None:
        self.recorded += 1
        number = self.recorded

        def happen() -> bool:
            self.reached = max(self.reached, number)
            return True

        stream.put(happen)

    def wait(self, stream: _Stream) -> None:
        number = self.recorded
        stream.put(lambda: self.reached >= number)


class _NoEvent(_Event):
    """Guards nothing: what the test must notice."""

    def wait(self, stream: _Stream) -> None:
        pass


def _train(num_slots: int, steps: int, seed: int, make_event: dict[str, type[_Event]]) -> list[int]:
    """Run a writer and a reader whose devices lag behind at random; what did the reader see?

    Messages pass at once, as between processes that wait for no device.
    """
    chance = random.Random(seed)
    teacher, student = _Stream(), _Stream()
    events = {name: [kind() for _ in range(num_slots)] for name, kind in make_event.items()}
    written, freed = events["written"], events["freed"]
    memory = [0] * num_slots
    writes = _slots(num_slots, written=written, freed=freed, stream=lambda: teacher)
    reads = _slots(num_slots, written=written, freed=freed, stream=lambda: student)
    seen: list[int] = []

    def lag() -> None:
        for _ in range(chance.randrange(4)):
            chance.choice((teacher, student)).run_one()

    def write(slot: int, value: int) -> bool:
        memory[slot] = value
        return True

    def read(slot: int) -> bool:
        seen.append(memory[slot])
        return True

    def serve_(step: int) -> None:
        with writes.writing(step % num_slots):
            teacher.put(lambda: write(step % num_slots, step + 1))

    for step in range(min(num_slots, steps)):
        serve_(step)
        lag()
    for step in range(steps):
        slot = step % num_slots
        reads.start_reading(slot)
        student.put(lambda slot=slot: read(slot))
        reads.stop_reading(slot)
        lag()
        if step + num_slots < steps:  # the slot is asked for again while its rows are still used
            serve_(step + num_slots)
            lag()
    for _ in range(20 * steps):
        chance.choice((teacher, student)).run_one()
    while teacher.run_one() or student.run_one():
        pass
    return seen


@settings(max_examples=60, deadline=None)
@given(num_slots=st.integers(1, 4), steps=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_no_row_is_read_before_or_after_it_is_there(num_slots: int, steps: int, seed: int) -> None:
    guarded = {"written": _Event, "freed": _Event}
    assert _train(num_slots, steps, seed, guarded) == list(range(1, steps + 1))


@pytest.mark.parametrize("missing", ["written", "freed"])
def test_each_event_is_needed(missing: str) -> None:
    events = {"written": _Event, "freed": _Event, missing: _NoEvent}
    torn = [_train(2, 12, seed, events) != list(range(1, 13)) for seed in range(50)]
    assert any(torn)


def test_nothing_is_recorded_for_rows_that_were_not_written() -> None:
    written, freed = [_Event()], [_Event()]
    slots = _slots(1, written=written, freed=freed, stream=_Stream)
    with pytest.raises(ZeroDivisionError), slots.writing(0):
        raise ZeroDivisionError
    assert written[0].recorded == 0


# What is sent


def test_hello_carries_the_device() -> None:
    hello = Hello(rank=0, world_size=1, slots=2, layout=LAYOUT, device=NOWHERE)
    assert Hello.unpack(hello.pack()) == hello


def test_hello_without_the_devices_handle_is_refused() -> None:
    hello = Hello(rank=0, world_size=1, slots=2, layout=LAYOUT)
    with pytest.raises(TransportError, match="Expected the handle of a GPU's memory"):
        Hello.unpack(hello.pack())


def test_a_ring_is_handed_on_with_its_device() -> None:
    student, teacher = _ring()
    message = wire.opening(3, teacher)
    opened = wire.opened(message, os.dup(teacher.fd))
    assert opened.device == NOWHERE
    assert opened.layout == LAYOUT
    for ring in (student, teacher, opened):
        ring.close()


# What is refused


def test_a_request_is_read_by_a_process_without_a_gpu_but_not_written() -> None:
    """The SGLang teacher's engine only hands rings on."""
    student, teacher = _ring()
    _ask(student)
    assert teacher.header(0).num_rows == 2
    with pytest.raises(TransportError, match=f"does not see GPU {NOWHERE.gpu}"):
        teacher.hidden(0, 2)
    with pytest.raises(TransportError, match=f"does not see GPU {NOWHERE.gpu}"):
        teacher.open_device()
    student.close()
    teacher.close()


def test_hook_that_cannot_open_a_ring_says_so() -> None:
    student, teacher = _ring()
    ours, theirs = (
        wire.Channel(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    )
    rings = Rings(ours)
    rings.obey(wire.opening(4, teacher), os.dup(teacher.fd))
    answer, _ = theirs.receive(WAIT_S)
    assert answer["ring"] == 4
    assert f"does not see GPU {NOWHERE.gpu}" in answer["error"]
    rings.obey({"do": "close", "ring": 4, "wait": True}, None)
    assert theirs.receive(WAIT_S)[0] == {"ring": 4}, "also of one that was never open"
    for one in (student, teacher, ours, theirs):
        one.close()


class _Teacher:
    """Writes into the slots it is given."""

    backend = "transformers"
    hidden_size = H
    dtype = torch.bfloat16
    batch_tokens = 0
    asleep = False

    def fill(self, requests: Sequence[Request]) -> None:
        for request in requests:
            with request.ring.writing(request.slot):
                request.out.fill_(1.0)

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None:
        pass


def test_teacher_that_cannot_open_the_memory_fails_the_request_in_words(socket_path: str) -> None:
    """Never another way behind the user's back."""
    student, teachers = _ring()
    teachers.close()
    with ThreadPoolExecutor(1) as pool, TeacherEnd(socket_path, world_size=1) as end:
        served = pool.submit(serve, _Teacher(), end)
        connection = sockets.connect(socket_path, timeout_s=WAIT_S)
        hello = Hello(rank=0, world_size=1, slots=2, layout=LAYOUT, device=NOWHERE)
        socket.send_fds(connection, [hello.pack()], [student.fd])
        assert Message.unpack(sockets.receive(connection)).kind is Kind.WELCOME
        _ask(student)
        connection.send(Message(Kind.REQUEST, 0, 1).pack())
        answer = Message.unpack(sockets.receive(connection))
        assert answer.kind is Kind.FAILED
        for words in (f"does not see GPU {NOWHERE.gpu}", "transport='shared_memory'"):
            assert words in answer.text
        connection.send(Message(Kind.GOODBYE).pack())
        assert sockets.receive(connection) == b"", "the teacher lets go of the ring, then hangs up"
        served.result(WAIT_S)
    connection.close()
    student.close()


@no_gpu
def test_a_student_without_a_gpu_is_refused_at_once_and_leaves_nothing(socket_path: str) -> None:
    layout = dataclasses.replace(LAYOUT, on_device=False)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(TransportError, match=r"driver cannot be loaded.*transport='shared_memory'"):
        StudentEnd(socket_path, rank=0, world_size=1, layout=layout, slots=1, gpu=0)
    assert set(os.listdir("/proc/self/fd")) <= before


@no_gpu
def test_without_a_gpu_there_is_no_writer_and_no_driver() -> None:
    assert writer_on(None) is None
    assert "transport='shared_memory'" in driver.why_not()
    chosen = choose_here("auto", gpu=None, writer=None)
    assert chosen == ("shared_memory", "auto: the students compute on a CPU")
