"""The ring between real processes: the memory is shared, and who dies is missed at once.

The peers are this file run as a script, so that nothing is shared with pytest but the ring.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

import kdflow_lab
from kdflow_lab.errors import TransportError
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import Request, TeacherEnd

ROWS, H = 256, 64
WAIT_S = 120.0
"""Only a test that fails waits this long."""


def _layout(dtype_name: str = "bfloat16") -> SlotLayout:
    return SlotLayout(
        max_tokens=ROWS, max_sequences=2, max_rows=ROWS, hidden_size=H, dtype_name=dtype_name
    )


def _student(path: str, rank: int, world_size: int, slots: int, dtype_name: str) -> StudentEnd:
    return StudentEnd(
        path,
        rank=rank,
        world_size=world_size,
        layout=_layout(dtype_name),
        slots=slots,
        timeout_s=WAIT_S,
    )


def _submit(end: StudentEnd, step: int, num_rows: int = ROWS) -> None:
    rows = torch.arange(num_rows)
    end.submit(step=step, index=0, input_ids=rows, cu_seqlens=[0, num_rows], rows=rows)


def _bits(step: int, dtype_name: str) -> torch.Tensor:
    """Rows of random bits: every pattern occurs, those of NaN and infinity included."""
    generator = torch.Generator().manual_seed(step)
    item_bytes = _layout(dtype_name).item_bytes
    integers = {2: torch.int16, 4: torch.int32}[item_bytes]
    low, high = torch.iinfo(integers).min, torch.iinfo(integers).max
    bits = torch.randint(low, high, (ROWS, H), generator=generator, dtype=integers)
    return bits.view(getattr(torch, dtype_name))


# The peers' side: what a process of its own does.


def _say(word: str) -> None:
    print(word, flush=True)


def _until_killed() -> None:
    while True:
        signal.pause()


def _serve(path: str, dtype_name: str, way: str) -> None:
    """A teacher in a process of its own."""
    with TeacherEnd(path, world_size=1) as teacher:
        _say("listening")
        for request in teacher.requests(hidden_size=H, dtype_name=dtype_name):
            if way == "bits":
                request.out.copy_(_bits(request.step, dtype_name))
            elif way == "sequence":
                request.out.fill_(request.step)
            elif request.step == 1:  # "hang"
                _say("computing")
                _until_killed()
            teacher.publish(request, teacher_s=0.5)
    _say("served")


def _learn(path: str, rank: int, world_size: int) -> None:
    """A student in a process of its own: uses one answer, then waits for one that never comes."""
    with _student(path, rank, world_size, 2, "bfloat16") as end:
        _submit(end, 0)
        end.receive().release()
        _submit(end, 1)
        _say("received")
        if rank == 0:
            _until_killed()
        try:
            end.receive()
        except TransportError as error:
            _say(str(error))


# The tests' side


@contextmanager
def _peer(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run this file as another process; it is gone when the test is."""
    package = str(Path(kdflow_lab.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _hear(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that a peer says; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def _kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(WAIT_S) == -signal.SIGKILL


@pytest.fixture
def socket_path() -> Iterator[str]:
    """Lies in a folder of this user's alone, with a short path."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        yield f"{folder}/teacher.sock"


@contextmanager
def _served(
    path: str, way: str, *, dtype_name: str = "bfloat16", slots: int = 2
) -> Iterator[tuple[StudentEnd, subprocess.Popen[str]]]:
    """This process is the student of a teacher in another."""
    with _peer("serve", path, dtype_name, way) as teacher:
        assert _hear(teacher) == "listening"
        with _student(path, 0, 1, slots, dtype_name) as end:
            assert end.teacher_pid == teacher.pid
            yield end, teacher


def _ring_maps(pid: int | str) -> set[tuple[int, int, str]]:
    """Start, end and inode of each ring that a process has mapped."""
    maps = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/memfd:kdflow-ring"):
            start, end = (int(address, 16) for address in span.split("-"))
            maps.add((start, end, inode))
    return maps


def _in_dev_shm(size: int) -> list[str]:
    """What lies in /dev/shm and could be a ring of ours: by its name, or by its very size."""
    return [
        entry.name
        for entry in os.scandir("/dev/shm")
        if "kdflow" in entry.name or entry.stat(follow_symlinks=False).st_size == size
    ]


# The ring is real


def test_the_ring_is_real(socket_path: str):
    """What the student receives is the memory that the teacher's process wrote, not a copy."""
    slots = 3
    others = _ring_maps("self")
    with _served(socket_path, "bits", slots=slots) as (end, teacher):
        ((start, stop, inode),) = _ring_maps("self") - others
        assert stop - start == slots * _layout().slot_bytes == end.describe()["bytes"]
        theirs = [found for _, _, found in _ring_maps(teacher.pid)]
        assert theirs == [inode], "both map the same memory"
        for step in range(slots):
            _submit(end, step)
        for step in range(slots):
            rows = end.receive(WAIT_S)
            tensor = rows.tensor
            num_bytes = ROWS * H * 2
            assert tensor.untyped_storage().nbytes() == tensor.nbytes == num_bytes
            slot = start + step * _layout().slot_bytes
            assert tensor.data_ptr() == slot + _layout().hidden_offset
            assert start <= tensor.data_ptr() <= tensor.data_ptr() + num_bytes <= stop
            assert end.contains(tensor)
            assert not end.contains(tensor.clone())
            assert rows.teacher_s == 0.5


def test_nothing_of_the_ring_has_a_name(socket_path: str):
    """Neither while it is used nor afterwards: so nothing can be left behind."""
    others = _ring_maps("self")
    with _served(socket_path, "bits") as (end, teacher):
        _submit(end, 0)
        end.receive(WAIT_S)
        size = int(end.describe()["bytes"])
        assert _in_dev_shm(size) == []
        assert os.listdir(Path(socket_path).parent) == [], "the socket is gone: all ranks are in"
        end.close()
        assert _hear(teacher) == "served"
        assert teacher.wait(WAIT_S) == 0
    assert _in_dev_shm(size) == []
    assert _ring_maps("self") - others == set()


@pytest.mark.parametrize("dtype_name", ["bfloat16", "float16", "float32"])
def test_contents_are_equal_bit_for_bit(socket_path: str, dtype_name: str):
    with _served(socket_path, "bits", dtype_name=dtype_name) as (end, _):
        for step in range(4):
            _submit(end, step)
            rows = end.receive(WAIT_S)
            assert rows.tensor.dtype == getattr(torch, dtype_name)
            assert torch.equal(
                rows.tensor.view(torch.uint8), _bits(step, dtype_name).view(torch.uint8)
            )
            rows.release()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_many_micro_batches_arrive_untorn_and_in_order(socket_path: str, depth: int):
    """The teacher writes ahead as far as the credits go, and never into what is being read."""
    many = 300
    with _served(socket_path, "sequence", dtype_name="float32", slots=depth) as (end, teacher):
        submitted = 0
        for step in range(many):
            while end.can_submit and submitted < many:
                _submit(end, submitted, num_rows=ROWS - submitted % 3)
                submitted += 1
            assert submitted == min(many, step + depth), "all credits are used"
            rows = end.receive(WAIT_S)
            tensor = rows.tensor
            assert rows.step == step
            assert tensor.shape == (ROWS - step % 3, H)
            assert tensor[0, 0].item() == tensor[-1, -1].item() == step
            assert bool((tensor == step).all())
            rows.release()
        end.close()
        assert _hear(teacher) == "served"


# Who dies is missed


DIED = "The teacher (pid {pid}) died, or its engine was killed. lab.up() starts it again."


def test_teacher_killed_while_it_computes_ends_the_students_wait(socket_path: str):
    """`receive` has no time-out here: only the kernel's word ends it."""
    with _served(socket_path, "hang") as (end, teacher):
        _submit(end, 0)
        rows = end.receive()
        kept = rows.tensor
        kept_bytes = kept.view(torch.uint8).clone()
        _submit(end, 1)
        assert _hear(teacher) == "computing"
        _kill(teacher)
        with pytest.raises(TransportError) as caught:
            end.receive()
        assert str(caught.value) == DIED.format(pid=teacher.pid)
        assert torch.equal(kept.view(torch.uint8), kept_bytes), "the memory is ours, and stays"
        rows.release()
        for use in (lambda: _submit(end, 2), end.receive):
            with pytest.raises(TransportError) as caught:
                use()
            assert str(caught.value) == DIED.format(pid=teacher.pid), "also the next time"
        size = int(end.describe()["bytes"])
    assert _in_dev_shm(size) == []


def test_answer_that_came_before_the_teacher_was_killed_is_still_read(socket_path: str):
    """Although it died with a request unread, which Linux reports first."""
    with _served(socket_path, "hang", slots=3) as (end, teacher):
        _submit(end, 0)
        _submit(end, 1)
        assert _hear(teacher) == "computing"
        _submit(end, 2)  # nobody reads this one
        _kill(teacher)
        assert end.receive().step == 0
        with pytest.raises(TransportError) as caught:
            end.receive()
        assert str(caught.value) == DIED.format(pid=teacher.pid)


def test_asking_a_killed_teacher_says_so(socket_path: str):
    with _served(socket_path, "hang", slots=2) as (end, teacher):
        _kill(teacher)
        with pytest.raises(TransportError) as caught:
            _submit(end, 0)
        assert str(caught.value) == DIED.format(pid=teacher.pid)


def test_killed_student_ends_the_serving_and_its_peers_are_told(socket_path: str):
    with ExitStack() as stack:
        teacher = stack.enter_context(TeacherEnd(socket_path, world_size=2))
        students = [stack.enter_context(_peer("learn", socket_path, rank, 2)) for rank in range(2)]
        requests = teacher.requests(hidden_size=H, dtype_name="bfloat16")
        held: list[Request] = []
        for rank in range(2):
            held.append(next(requests))
            assert (held[-1].step, held[-1].rank) == (0, rank)
            held[-1].out.fill_(1.0)
            teacher.publish(held[-1], 0.0)
        for student in students:
            assert _hear(student) == "received"
        _kill(students[0])
        with pytest.raises(TransportError) as caught:
            for _ in requests:  # what it asked for before may still come out; no other step does
                pass
        reason = (
            f"Student rank 0 (pid {students[0].pid}) died, or its engine was killed. "
            "The other ranks cannot go on without it."
        )
        assert str(caught.value) == reason
        assert _hear(students[1]) == f"The teacher stopped serving: {reason}"
        assert students[1].wait(WAIT_S) == 0
        assert os.listdir(Path(socket_path).parent) == []
        assert all(bool((request.out == 1.0).all()) for request in held), "its memory outlives it"


def test_memory_of_a_killed_student_goes_with_the_last_tensor(socket_path: str):
    others = _ring_maps("self")
    with TeacherEnd(socket_path, world_size=1) as teacher:
        with _peer("learn", socket_path, 0, 1) as student:
            out = next(teacher.requests(hidden_size=H, dtype_name="bfloat16")).out
            _kill(student)
        teacher.close()
        assert len(_ring_maps("self") - others) == 1
        out.fill_(1.0)  # still there: no SIGBUS, no SIGSEGV
        del out
        assert _ring_maps("self") - others == set()
        assert _in_dev_shm(2 * _layout().slot_bytes) == []


def test_student_killed_before_the_world_is_complete_is_missed(socket_path: str):
    with TeacherEnd(socket_path, world_size=2) as teacher, ExitStack() as stack:
        student = stack.enter_context(_peer("learn", socket_path, 0, 2))
        requests = teacher.requests(hidden_size=H, dtype_name="bfloat16")
        teacher.publish(next(requests), 0.0)
        assert _hear(student) == "received"
        _kill(student)
        with pytest.raises(TransportError, match=r"^Student rank 0 \(pid \d+\) died, or its eng"):
            next(requests)
        assert os.listdir(Path(socket_path).parent) == [], "nobody listens any more"


if __name__ == "__main__":
    torch.set_num_threads(1)
    role, *arguments = sys.argv[1:]
    if role == "serve":
        _serve(*arguments)
    else:
        _learn(arguments[0], int(arguments[1]), int(arguments[2]))
