"""Both ends of the ring, in threads of one process: order, credits, refusals, last words.

Ends in processes of their own, and what a killed one leaves, are in tests/multiprocess.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.transport import sockets
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import MAX_MESSAGE_BYTES, SCHEMA, Hello, Kind, Message
from kdflow_lab.transport.ring import Ring
from kdflow_lab.transport.student_end import HiddenRows, StudentEnd
from kdflow_lab.transport.teacher_end import Request, TeacherEnd

H = 8
LAYOUT = SlotLayout(
    max_tokens=32, max_sequences=4, max_rows=16, hidden_size=H, dtype_name="float32"
)
WAIT_S = 60.0
"""Only a test that fails waits this long."""

Answer = Callable[[TeacherEnd, Request], None]
Order = list[tuple[int, int, int]]


def _mark(request: Request) -> float:
    """A number that only this request's rows carry."""
    return float(1000 * request.rank + 10 * request.step + request.index)


def _compute(teacher: TeacherEnd, request: Request) -> None:
    """A teacher whose hidden states are the token ids, shifted by the request's own number."""
    ids = request.input_ids[request.rows.long()]
    request.out.copy_(ids[:, None] + _mark(request) / 10_000)
    teacher.publish(request, teacher_s=0.25)


def _serve(teacher: TeacherEnd, answer: Answer = _compute) -> Order:
    """Serve until every rank has closed; return (step, micro-batch, rank) as they came out."""
    order: Order = []
    for request in teacher.requests(hidden_size=H, dtype_name="float32"):
        order.append((request.step, request.index, request.rank))
        answer(teacher, request)
    return order


@contextmanager
def _teacher(
    path: str, *, world_size: int = 1, answer: Answer = _compute
) -> Iterator[tuple[TeacherEnd, Future[Order]]]:
    """A teacher that serves in a thread; what it raises stays in the future."""
    with ThreadPoolExecutor(1) as pool, TeacherEnd(path, world_size=world_size) as teacher:
        yield teacher, pool.submit(_serve, teacher, answer)


def _student(path: str, rank: int = 0, world_size: int = 1, **changes: object) -> StudentEnd:
    options = {"layout": LAYOUT, "slots": 2, "timeout_s": WAIT_S} | changes
    return StudentEnd(path, rank=rank, world_size=world_size, **options)  # pyright: ignore


def _submit(student: StudentEnd, step: int, index: int = 0, num_tokens: int = 6) -> None:
    student.submit(
        step=step,
        index=index,
        input_ids=torch.arange(num_tokens) + 100,
        cu_seqlens=[0, num_tokens],
        rows=torch.arange(num_tokens // 2, num_tokens),
    )


def _receive(student: StudentEnd) -> HiddenRows:
    return student.receive(timeout_s=WAIT_S)


def _message(caught: pytest.ExceptionInfo[BaseException] | Future[Order]) -> str:
    """The text of what was raised, here or in the teacher's thread."""
    if isinstance(caught, Future):
        error = caught.exception(WAIT_S)
        assert isinstance(error, TransportError)
        return str(error)
    return str(caught.value)


# Order


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world_size=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_requests_come_out_by_step_micro_batch_and_rank(world_size: int, seed: int):
    """Whatever the order in which the ranks connect and ask."""
    shuffle = random.Random(seed)
    plan = [(0, 0), (0, 1), (2, 0), (3, 0)]
    ranks = list(range(world_size))
    arrivals = [rank for rank in ranks for _ in plan]
    shuffle.shuffle(ranks)
    shuffle.shuffle(arrivals)
    with (
        tempfile.TemporaryDirectory() as folder,
        _teacher(f"{folder}/s", world_size=world_size) as (_, served),
        ExitStack() as stack,
    ):
        students = {
            rank: stack.enter_context(_student(f"{folder}/s", rank, world_size, slots=len(plan)))
            for rank in ranks
        }
        todo = {rank: iter(plan) for rank in ranks}
        for rank in arrivals:
            _submit(students[rank], *next(todo[rank]))
        for rank, student in students.items():
            for step, index in plan:
                rows = _receive(student)
                assert (rows.step, rows.index) == (step, index)
                mark = (1000 * rank + 10 * step + index) / 10_000
                assert torch.equal(
                    rows.tensor, (torch.arange(103.0, 106.0) + mark)[:, None].expand(3, H)
                )
                rows.release()
        stack.close()
        assert served.result(WAIT_S) == sorted(
            (step, index, rank) for step, index in plan for rank in range(world_size)
        )


def test_no_rank_is_served_ahead_of_the_others(socket_path: str):
    """Ranks meet in collectives: the one that waits for the slow one must not be answered twice."""
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        _student(socket_path, 0, 2) as fast,
        _student(socket_path, 1, 2) as slow,
    ):
        _submit(fast, 0)
        _submit(fast, 1)
        _receive(fast).release()
        with pytest.raises(TransportError) as caught:
            fast.receive(timeout_s=0.05)
        assert _message(caught) == (
            f"The teacher (pid {os.getpid()}) has not answered rank 0 within 0.05 s. "
            "It may be waiting for another rank's micro-batch."
        )
        _submit(slow, 0)
        assert _receive(slow).step == 0
        assert _receive(fast).step == 1
        fast.close()
        slow.close()
        assert served.result(WAIT_S) == [(0, 0, 0), (0, 0, 1), (1, 0, 0)]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            {0: (0, 0), 1: (0, 1)},
            "Rank 1 asked for (step, micro-batch) (0, 1); expected (0, 0), as the ranks before it.",
        ),
        (
            {0: (0, 0), 1: (1, 0)},
            "Rank 1 asked for (step, micro-batch) (1, 0); expected (0, 0), as the ranks before it.",
        ),
    ],
    ids=["micro-batch", "step"],
)
def test_ranks_that_follow_different_plans_are_stopped(
    socket_path: str, asked: dict[int, tuple[int, int]], reason: str
):
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        _student(socket_path, 0, 2) as first,
        _student(socket_path, 1, 2) as second,
    ):
        _submit(first, *asked[0])
        _submit(second, *asked[1])
        reason += (
            " All ranks must follow the same data plan, in order, empty micro-batches included."
        )
        assert _message(served) == reason
        _receive(first).release()  # what was answered before can still be read
        for student in (first, second):
            _submit_quietly(student)
            with pytest.raises(TransportError) as caught:
                _receive(student)
            assert _message(caught) == f"The teacher stopped serving: {reason}"


def _submit_quietly(student: StudentEnd) -> None:
    """Ask for more; a student whose teacher has ended may hear of it here already."""
    with suppress(TransportError):
        _submit(student, 9)


def test_step_that_was_served_already_is_refused(socket_path: str):
    with _teacher(socket_path) as (_, served), _student(socket_path) as student:
        _submit(student, 4, 1)
        _submit(student, 4, 1)
        assert _message(served) == (
            "Rank 0 asked for (step, micro-batch) (4, 1); expected one after (4, 1). All ranks "
            "must follow the same data plan, in order, empty micro-batches included."
        )


# Credits


def test_slots_are_the_credits(socket_path: str):
    with _teacher(socket_path), _student(socket_path, slots=2) as student:
        assert student.can_submit
        _submit(student, 0)
        assert student.can_submit
        _submit(student, 1)
        assert not student.can_submit
        first = _receive(student)
        assert not student.can_submit, "received, but not released"
        with pytest.raises(TransportError) as caught:
            _submit(student, 2)
        assert _message(caught) == (
            "All 2 slots of the ring are in use. Receive and release hidden rows before submitting "
            "more, or raise depth."
        )
        kept = first.tensor.clone()
        first.release()
        assert student.can_submit
        _submit(student, 2)
        assert not student.can_submit
        for step in (1, 2):
            rows = _receive(student)
            assert rows.step == step
            rows.release()
        assert kept[0, 0].item() == 103.0


def test_released_rows_are_not_handed_out_again(socket_path: str):
    """Their slot may hold other rows by then: that would be a silent error."""
    with _teacher(socket_path), _student(socket_path, slots=1) as student:
        _submit(student, 5, 2)
        rows = _receive(student)
        assert rows.tensor.shape == (3, H)
        rows.release()
        with pytest.raises(TransportError) as caught:
            _ = rows.tensor
        assert _message(caught) == (
            "The hidden rows of step 5, micro-batch 2 were released; their slot may hold other "
            "rows by now. Use them before release(), or clone them."
        )
        rows.release()
        _submit(student, 6)
        assert not student.can_submit, "the second release gave no second credit"


def test_rows_lie_in_the_ring_and_outlive_the_end(socket_path: str):
    with _teacher(socket_path), _student(socket_path) as student:
        _submit(student, 0)
        rows = _receive(student)
        tensor = rows.tensor
        assert student.contains(tensor)
        assert not student.contains(tensor.clone())
        assert rows.teacher_s == 0.25
        assert student.teacher_pid == os.getpid()
        assert student.describe()["transport"] == "shared memory (memfd)"
    assert tensor[:, 0].tolist() == [103.0, 104.0, 105.0]
    rows.release()  # after close: nothing to give back, and no error


def test_request_arrives_as_it_was_asked_and_lies_in_the_ring(socket_path: str):
    seen: list[Request] = []

    def answer(teacher: TeacherEnd, request: Request) -> None:
        seen.append(request)
        teacher.publish(request, 0.0)

    with _teacher(socket_path, answer=answer), _student(socket_path) as student:
        student.submit(
            step=3,
            index=1,
            input_ids=torch.tensor([5, 6, 7, 8, 9], dtype=torch.int64),
            cu_seqlens=torch.tensor([0, 2, 5]),
            rows=[1, 4],
        )
        _receive(student)
        (request,) = seen
        assert (request.rank, request.step, request.index) == (0, 3, 1)
        for tensor, expected in (
            (request.input_ids, [5, 6, 7, 8, 9]),
            (request.cu_seqlens, [0, 2, 5]),
            (request.rows, [1, 4]),
        ):
            assert tensor.dtype == torch.int32
            assert tensor.tolist() == expected
        assert request.out.shape == (2, H)


def test_empty_micro_batches_are_answered_in_turn(socket_path: str):
    """A rank without rows of its own still takes part in every round."""
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        _student(socket_path, 0, 2) as full,
        _student(socket_path, 1, 2) as empty,
    ):
        for step in range(2):
            _submit(full, step)
            _submit(empty, step, num_tokens=0)
        for step in range(2):
            rows = _receive(empty)
            assert rows.step == step
            assert rows.tensor.shape == (0, H)
            assert rows.tensor.dtype == torch.float32
            assert empty.contains(rows.tensor)
            rows.release()
            assert _receive(full).tensor.shape == (3, H)
        full.close()
        empty.close()
        assert served.result(WAIT_S) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]


def test_micro_batch_too_large_is_refused_and_costs_no_credit(socket_path: str):
    with _teacher(socket_path), _student(socket_path, slots=1) as student:
        with pytest.raises(TransportError, match="of 33 tokens, 1 sequences and 17 response tok"):
            _submit(student, 0, num_tokens=33)
        assert student.can_submit
        _submit(student, 0, num_tokens=32)
        assert _receive(student).tensor.shape == (16, H)


def test_receiving_what_was_never_asked_for_is_an_error(socket_path: str):
    with _teacher(socket_path), _student(socket_path) as student:
        with pytest.raises(TransportError) as caught:
            student.receive()
        assert _message(caught) == "Nothing to receive: no micro-batch was submitted."


# A request that fails


def test_failed_request_brings_the_teachers_message_and_the_next_one_works(socket_path: str):
    def answer(teacher: TeacherEnd, request: Request) -> None:
        if request.step == 0:
            teacher.fail(request, "out of memory: 3 GiB wanted. Lower micro_batch_tokens.")
        else:
            _compute(teacher, request)

    with _teacher(socket_path, answer=answer), _student(socket_path, slots=1) as student:
        _submit(student, 0, 1)
        with pytest.raises(TransportError) as caught:
            _receive(student)
        assert _message(caught) == (
            "The teacher failed on step 0, micro-batch 1 of rank 0: out of memory: 3 GiB wanted. "
            "Lower micro_batch_tokens."
        )
        assert student.can_submit, "the slot of a failed request is free again"
        _submit(student, 1)
        assert _receive(student).tensor.shape == (3, H)


def test_message_longer_than_a_packet_is_cut_not_lost(socket_path: str):
    with (
        _teacher(socket_path, answer=lambda teacher, request: teacher.fail(request, "é" * 9999)),
        _student(socket_path) as student,
    ):
        _submit(student, 0)
        with pytest.raises(TransportError, match=r"micro-batch 0 of rank 0: é{2000,}$"):
            _receive(student)


# Refusals


@pytest.mark.parametrize(
    ("layout", "theirs"),
    [({"hidden_size": 16}, "16 x float32"), ({"dtype_name": "bfloat16"}, "8 x bfloat16")],
    ids=["hidden size", "dtype"],
)
def test_layout_of_another_teacher_is_refused_on_both_sides(
    socket_path: str, layout: dict[str, int | str], theirs: str
):
    sizes = {"max_tokens": 32, "max_sequences": 4, "max_rows": 16, "hidden_size": H}
    other = SlotLayout(**{**sizes, "dtype_name": "float32", **layout})  # pyright: ignore
    reason = (
        f"The slots of rank 0 are for hidden rows of {theirs}, but the teacher's are 8 x float32. "
        "Make the layout from the teacher that serves this job."
    )
    with _teacher(socket_path) as (_, served):
        with pytest.raises(TransportError) as caught:
            _student(socket_path, layout=other)
        assert _message(caught) == f"The teacher refused rank 0: {reason}"
        assert _message(served) == f"A student (pid {os.getpid()}) was refused: {reason}"


@pytest.mark.parametrize(("rank", "world_size"), [(0, 3), (0, 1), (2, 2)])
def test_rank_of_another_world_is_refused_on_both_sides(
    socket_path: str, rank: int, world_size: int
):
    reason = (
        f"Rank {rank} of {world_size} asked to be served, but the teacher serves 2 ranks, 0 to 1. "
        "Give both the same world_size."
    )
    with _teacher(socket_path, world_size=2) as (_, served):
        with pytest.raises(TransportError) as caught:
            _student(socket_path, rank, world_size)
        assert _message(caught) == f"The teacher refused rank {rank}: {reason}"
        assert _message(served) == f"A student (pid {os.getpid()}) was refused: {reason}"


def test_rank_that_comes_twice_is_refused_and_the_first_one_told(socket_path: str):
    pid = os.getpid()
    reason = (
        f"Rank 1 is served already (pid {pid}). Expected each rank once; give each student its own."
    )
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        _student(socket_path, 1, 2) as first,
    ):
        with pytest.raises(TransportError) as caught:
            _student(socket_path, 1, 2)
        assert _message(caught) == f"The teacher refused rank 1: {reason}"
        reason = f"A student (pid {pid}) was refused: {reason}"
        assert _message(served) == reason
        with pytest.raises(TransportError) as caught:
            _submit(first, 0)
        assert _message(caught) == f"The teacher stopped serving: {reason}"
        with pytest.raises(TransportError) as caught:
            first.receive()
        assert _message(caught) == f"The teacher stopped serving: {reason}", "also the next time"


def test_rank_too_many_in_the_queue_is_refused_not_left_for_dead(socket_path: str):
    """It connected before the door closed, and its hello was never read."""
    with TeacherEnd(socket_path, world_size=1) as teacher, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        early = [
            stack.enter_context(sockets.connect(socket_path, timeout_s=WAIT_S)) for _ in range(3)
        ]
        ring, fd = Ring.create(LAYOUT, slots=1)
        stack.callback(ring.close)
        hello = Hello(rank=0, world_size=1, slots=1, layout=LAYOUT).pack()
        socket.send_fds(early[0], [hello], [fd])
        os.close(fd)
        served = pool.submit(_serve, teacher)
        assert Message.unpack(sockets.receive(early[0])) == Message(Kind.WELCOME)
        assert Message.unpack(sockets.receive(early[2])) == Message(
            Kind.REFUSED, text="All 1 ranks are served already. Expected each rank once."
        )
        early[0].send(Message(Kind.GOODBYE).pack())
        assert served.result(WAIT_S) == []


def test_students_not_taken_in_yet_hear_why_the_teacher_ends(socket_path: str):
    """Rather than that it died: one is at the door, the other stands in the queue."""
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        sockets.connect(socket_path, timeout_s=WAIT_S) as at_the_door,
    ):
        with pytest.raises(TransportError, match="The teacher refused rank 0: Rank 0 of 3"):
            _student(socket_path, 0, 3)
        assert Message.unpack(sockets.receive(at_the_door)) == Message(
            Kind.ENDED, text=_message(served)
        )
    path = str(Path(socket_path).with_name("other"))
    with (
        TeacherEnd(path, world_size=2) as teacher,
        sockets.connect(path, timeout_s=WAIT_S) as in_the_queue,
    ):
        teacher.close()
        assert Message.unpack(sockets.receive(in_the_queue)) == Message(
            Kind.ENDED, text="it was told to stop. Start the run again."
        )


def test_layout_without_a_dtype_of_ours_is_refused_on_both_sides(socket_path: str):
    hello = Hello(rank=0, world_size=1, slots=1, layout=LAYOUT).pack()
    hello = hello.replace(b"float32", b"float64")
    with (
        _teacher(socket_path) as (_, served),
        sockets.connect(socket_path, timeout_s=WAIT_S) as stranger,
    ):
        stranger.send(hello)
        answer = Message.unpack(sockets.receive(stranger))
        assert answer.kind is Kind.REFUSED
        assert answer.text.startswith("Unknown dtype of hidden states 'float64'.")
        assert _message(served).endswith(answer.text)
    with pytest.raises(ConfigError):
        Hello.unpack(hello)


def _hello(version: int = SCHEMA) -> bytes:
    packed = bytearray(Hello(rank=0, world_size=1, slots=1, layout=LAYOUT).pack())
    packed[4] = version
    return bytes(packed)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            b"GET / HTTP/1.1",
            "Expected the hello of a student, got b'GET / HTTP/1.1'. Only kdflow-lab's students "
            "may connect to the teacher's socket.",
        ),
        (_hello(), "The hello of a student came without its ring's memory."),
        (
            _hello(SCHEMA + 1),
            f"The student speaks version {SCHEMA + 1} of the ring's messages, the teacher version "
            f"{SCHEMA}. Run both with the same kdflow-lab: restart the engines (lab.close(), "
            "lab.up()).",
        ),
    ],
    ids=["not ours", "no memory", "another version"],
)
def test_stranger_is_refused_with_the_reason(socket_path: str, said: bytes, reason: str):
    with (
        _teacher(socket_path) as (_, served),
        sockets.connect(socket_path, timeout_s=WAIT_S) as stranger,
    ):
        stranger.send(said)
        assert Message.unpack(sockets.receive(stranger)) == Message(Kind.REFUSED, text=reason)
        assert _message(served) == f"A student (pid {os.getpid()}) was refused: {reason}"


def test_memory_that_could_shrink_is_refused_on_both_sides(socket_path: str):
    with (
        _teacher(socket_path) as (_, served),
        sockets.connect(socket_path, timeout_s=WAIT_S) as stranger,
        tempfile.TemporaryFile() as file,
    ):
        file.truncate(LAYOUT.slot_bytes)
        socket.send_fds(stranger, [_hello()], [file.fileno()])
        answer = Message.unpack(sockets.receive(stranger))
        assert answer.kind is Kind.REFUSED
        assert answer.text.startswith("The ring's memory is not sealed: expected a memfd")
        assert _message(served).endswith(answer.text)


def test_who_connects_and_leaves_is_none_of_the_jobs_business(socket_path: str):
    with _teacher(socket_path) as (_, served):
        for _ in range(3):
            sockets.connect(socket_path, timeout_s=WAIT_S).close()
        with _student(socket_path) as student:
            _submit(student, 0)
            _receive(student)
        assert served.result(WAIT_S) == [(0, 0, 0)]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_process_is_refused_and_cannot_end_the_job(folder: Path, socket_path: str):
    program = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.shutdown(socket.SHUT_WR)
sys.stdout.buffer.write(connection.recv(4096))
"""
    with _teacher(socket_path) as (_, served):
        folder.chmod(0o711)  # what `listen` saw to is undone: the check behind it must hold too
        os.chmod(socket_path, 0o666)
        packed = subprocess.run([sys.executable, "-c", program, socket_path], capture_output=True)
        assert Message.unpack(packed.stdout) == Message(
            Kind.REFUSED, text="user 65534 is not its own."
        )
        with _student(socket_path) as student:
            _submit(student, 0)
            _receive(student)
        assert served.result(WAIT_S) == [(0, 0, 0)]


# Waiting in vain


def test_no_teacher_is_an_error_that_says_where_it_was_looked_for(socket_path: str):
    with pytest.raises(TransportError) as caught:
        _student(socket_path, timeout_s=0.05)
    assert _message(caught) == (
        f"No teacher listens at {socket_path} after 0.05 s (No such file or directory). "
        "Expected a teacher that serves this job; look at its log."
    )


def test_teacher_that_comes_later_is_waited_for(socket_path: str):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_student, socket_path)
        with _teacher(socket_path), waiting.result(WAIT_S) as student:
            _submit(student, 0)
            assert _receive(student).step == 0


def test_student_that_gave_up_at_the_door_does_not_pass_for_a_finished_one(socket_path: str):
    """Its peers would be served without it, and hang in their first collective."""
    with TeacherEnd(socket_path, world_size=1) as teacher:
        with pytest.raises(TransportError) as caught:
            _student(socket_path, timeout_s=0.05)
        pid = os.getpid()
        assert _message(caught) == (
            f"The teacher (pid {pid}) listens, but did not take rank 0 in within 0.05 s. "
            "Look whether it is busy or hangs."
        )
        with pytest.raises(TransportError) as caught:
            _serve(teacher)
        assert _message(caught) == (
            f"Student rank 0 (pid {pid}) died, or its engine was killed. "
            "The other ranks cannot go on without it."
        )


# The end


def test_serving_ends_when_every_rank_has_closed_and_the_socket_is_gone(socket_path: str):
    with _teacher(socket_path, world_size=2) as (_, served):
        with _student(socket_path, 0, 2) as first:
            assert os.path.exists(socket_path), "one rank is still to come"
            with _student(socket_path, 1, 2):
                _submit(first, 0)
                _receive(first)
                assert not os.path.exists(socket_path), "nobody else is to come"
        assert served.result(WAIT_S) == [(0, 0, 0)]


def test_rank_that_has_finished_is_left_out(socket_path: str):
    """It says goodbye with a request unread; the others go on."""
    with (
        _teacher(socket_path, world_size=2) as (_, served),
        _student(socket_path, 0, 2) as short,
        _student(socket_path, 1, 2) as long,
    ):
        _submit(short, 0)
        _receive(short)
        short.close()
        for step in range(3):
            _submit(long, step)
            rows = _receive(long)
            assert rows.step == step
            rows.release()
        long.close()
        assert served.result(WAIT_S) == [(0, 0, 0), (0, 0, 1), (1, 0, 1), (2, 0, 1)]


def test_close_from_another_thread_ends_a_wait_for_students(socket_path: str):
    """Serving has no time-out: without the wake-up it would wait for ever."""
    with _teacher(socket_path) as (teacher, served):
        teacher.close()
        assert served.result(WAIT_S) == []
        assert not os.path.exists(socket_path)
        teacher.close()


def test_close_from_another_thread_ends_a_wait_for_requests_and_tells_the_ranks(socket_path: str):
    with _teacher(socket_path) as (teacher, served), _student(socket_path) as student:
        _submit(student, 0)
        _receive(student)
        teacher.close()
        assert served.result(WAIT_S) == [(0, 0, 0)]
        with pytest.raises(TransportError) as caught:
            _submit(student, 1)
        assert _message(caught) == (
            "The teacher stopped serving: it was told to stop. Start the run again."
        )


def test_close_ends_the_wait_of_a_student_and_the_teachers_own_tensors_stay_valid(
    socket_path: str,
):
    computing: Future[Request] = Future()
    closed: Future[None] = Future()

    def answer(teacher: TeacherEnd, request: Request) -> None:
        computing.set_result(request)
        closed.result(WAIT_S)
        request.out.fill_(1.0)  # the map is still there
        teacher.publish(request, 0.0)  # nobody is there to read it

    with (
        ThreadPoolExecutor(1) as pool,
        _teacher(socket_path, answer=answer) as (teacher, served),
        _student(socket_path) as student,
    ):
        _submit(student, 0)
        computing.result(WAIT_S)
        waiting = pool.submit(student.receive)
        teacher.close()
        error = waiting.exception(WAIT_S)
        assert isinstance(error, TransportError)
        assert str(error) == (
            "The teacher stopped serving: it was told to stop. Start the run again."
        )
        closed.set_result(None)
        assert served.result(WAIT_S) == [(0, 0, 0)]
        assert (computing.result().out == 1.0).all()


def test_closed_student_refuses_to_be_used(socket_path: str):
    with _teacher(socket_path):
        student = _student(socket_path)
        student.close()
        student.close()
        assert not student.can_submit
        for use in (lambda: _submit(student, 0), student.receive):
            with pytest.raises(TransportError, match=r"^This end of the ring is closed\.$"):
                use()


# What only a bug could send


@contextmanager
def _raw_student(path: str) -> Iterator[tuple[socket.socket, Ring]]:
    """A taken-in rank whose messages the test writes itself."""
    ring, fd = Ring.create(LAYOUT, slots=2)
    with sockets.connect(path, timeout_s=WAIT_S) as connection:
        hello = Hello(rank=0, world_size=1, slots=2, layout=LAYOUT)
        socket.send_fds(connection, [hello.pack()], [fd])
        os.close(fd)
        assert Message.unpack(sockets.receive(connection)).kind is Kind.WELCOME
        yield connection, ring
    ring.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            Message(Kind.REQUEST, slot=0, sequence=2).pack(),
            "Rank 0 asked for request 2 in slot 0, but the slot holds request 1 of rank 0. "
            "This is a bug of kdflow-lab: please report it.",
        ),
        (
            Message(Kind.REQUEST, slot=9, sequence=1).pack(),
            "There is no slot 9 in a ring of 2 slots.",
        ),
        (Message(Kind.DONE).pack(), "Rank 0 sent DONE; expected REQUEST or GOODBYE."),
        (b"hello?", "Expected a ring message, got b'hello?'."),
    ],
    ids=["another request", "no such slot", "not a student's word", "garbage"],
)
def test_nonsense_of_a_rank_ends_the_job_with_a_reason(socket_path: str, said: bytes, reason: str):
    with _teacher(socket_path) as (_, served), _raw_student(socket_path) as (connection, ring):
        ring.write_request(
            0,
            sequence=1,
            step=0,
            micro_batch=0,
            rank=0,
            input_ids=[1, 2],
            cu_seqlens=[0, 2],
            rows=[1],
        )
        connection.send(said)
        assert _message(served) == reason
        assert Message.unpack(sockets.receive(connection)) == Message(Kind.ENDED, text=reason)


def test_answer_to_another_request_is_not_taken(socket_path: str):
    """Rows of one micro-batch under the labels of another would train in silence."""
    with (
        ThreadPoolExecutor(1) as pool,
        sockets.listen(socket_path, backlog=1) as listener,
    ):
        connecting = pool.submit(_student, socket_path)
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
            os.close(*fds)
            connection.send(Message(Kind.WELCOME).pack())
            with connecting.result(WAIT_S) as student:
                _submit(student, 0)
                _submit(student, 1)
                connection.send(Message(Kind.DONE, slot=1, sequence=2).pack())
                with pytest.raises(TransportError) as caught:
                    _receive(student)
                assert _message(caught) == (
                    "The teacher answered request 2 in slot 1; expected request 1 in slot 0. "
                    "This is a bug of kdflow-lab: please report it."
                )
