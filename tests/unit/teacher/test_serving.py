"""One teacher, two meeting points: sessions aside come and go, die, and disturb nothing."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kdflow_lab import roles
from kdflow_lab.errors import ModelError, TransportError
from kdflow_lab.teacher.serving import Serving, Turns
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind
from kdflow_lab.transport.request import Request
from kdflow_lab.transport.student_end import StudentEnd

H = 4
LAYOUT = SlotLayout(
    max_tokens=16, max_sequences=2, max_rows=16, hidden_size=H, dtype_name="float32"
)
WAIT_S = 60.0
"""Only a test that fails waits this long."""


class _Teacher:
    """Its hidden states are the token ids. Notes whether two threads were ever inside."""

    backend = "transformers"
    hidden_size = H
    dtype = torch.float32
    batch_tokens = 0
    asleep = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.inside = self.most_inside = 0
        self.naps = 0
        self.order: list[int] = []  # the first token of what was run

    def fill(self, requests: Sequence[Request]) -> None:
        assert not self.asleep
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        for request in requests:
            self.order.append(int(request.input_ids[0]))
            time.sleep(self.seconds)
            wanted = request.input_ids[request.rows.long()]
            request.out.copy_(wanted[:, None].expand(-1, H))
        self.inside -= 1

    def sleep(self) -> None:
        self.asleep = True
        self.naps += 1

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None:
        pass


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kdf-") as name:
        yield Path(name)


@pytest.fixture
def serving(folder: Path) -> Iterator[Callable[..., tuple[_Teacher, Serving]]]:
    """Start one; whatever the test does to it, it is closed and leaves nothing."""
    made: list[Serving] = []

    def start(*, world_size: int = 1, seconds: float = 0.0) -> tuple[_Teacher, Serving]:
        teacher = _Teacher(seconds)
        paths = (str(folder / "teacher.sock"), str(folder / "aside.sock"))
        made.append(Serving(teacher, *paths, world_size=world_size, threads=1))
        return teacher, made[-1]

    yield start
    for one in made:
        one.close()
        assert not any(thread.is_alive() for thread in one._threads)
    assert list(folder.iterdir()) == []


def _student(path: Path, rank: int = 0, world_size: int = 1, slots: int = 2) -> StudentEnd:
    return StudentEnd(
        str(path), rank=rank, world_size=world_size, layout=LAYOUT, slots=slots, timeout_s=WAIT_S
    )


def _submit(end: StudentEnd, step: int, first: int, kind: Kind = Kind.REQUEST) -> None:
    ids = torch.arange(first, first + 6)
    rows = torch.arange(6)
    end.submit(step=step, index=0, input_ids=ids, cu_seqlens=[0, 6], rows=rows, kind=kind)


def _check(end: StudentEnd, first: int) -> None:
    rows = end.receive(timeout_s=WAIT_S)
    assert rows.tensor[:, 0].tolist() == list(range(first, first + 6))
    rows.release()


def test_sessions_follow_one_another_while_training_requests_are_in_flight(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]]
) -> None:
    teacher, _ = serving()
    with _student(folder / "teacher.sock") as training:
        for step in range(2):
            _submit(training, step, 100 + step)
        assert not training.can_submit
        for session in range(3):
            with _student(folder / "aside.sock") as aside:
                _submit(aside, 0, 1000 * session)
                _check(aside, 1000 * session)
        for step in range(2):
            _check(training, 100 + step)
    assert teacher.most_inside == 1


@pytest.mark.parametrize("died", [0, 1])
def test_a_session_whose_student_dies_ends_alone(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]], died: int
) -> None:
    """Its peer is told; the training and the next session go on."""
    serving(world_size=2)
    with ThreadPoolExecutor(1) as pool:
        training = [_student(folder / "teacher.sock", rank, 2) for rank in range(2)]
        aside = [_student(folder / "aside.sock", rank, 2) for rank in range(2)]
        for end in aside:
            _submit(end, 0, 10)
        for end in aside:
            _check(end, 10)
        for step in (1, 2):
            _submit(aside[1 - died], step, 20)
        waiting = pool.submit(lambda: [aside[1 - died].receive(WAIT_S) for _ in range(2)])
        aside[died]._hang_up()  # without a goodbye, as the kernel does it for a process that dies
        with pytest.raises(TransportError, match=f"Student rank {died} .* died"):
            waiting.result(WAIT_S)
        again = [_student(folder / "aside.sock", rank, 2) for rank in range(2)]
        for ends in (training, again):
            for end in ends:
                _submit(end, 0, 30)
            for end in ends:
                _check(end, 30)
        for end in (*training, *aside, *again):
            end.close()


def test_a_session_that_does_not_fit_ends_alone(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]]
) -> None:
    serving()
    wrong = SlotLayout(
        max_tokens=1, max_sequences=1, max_rows=1, hidden_size=9, dtype_name="float32"
    )
    with pytest.raises(TransportError, match="refused rank 0"):
        StudentEnd(str(folder / "aside.sock"), rank=0, world_size=1, layout=wrong, slots=1)
    with _student(folder / "aside.sock") as aside:
        _submit(aside, 0, 5)
        _check(aside, 5)


def test_a_training_that_has_ended_leaves_sessions_alone(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]]
) -> None:
    serving()
    _student(folder / "teacher.sock").close()
    with _student(folder / "aside.sock") as aside:
        _submit(aside, 0, 5)
        _check(aside, 5)


def test_training_and_session_take_turns(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]]
) -> None:
    """An evaluation does not wait for a training ring that is full."""
    teacher, _ = serving(seconds=0.02)
    with (
        _student(folder / "teacher.sock", slots=12) as training,
        _student(folder / "aside.sock") as aside,
    ):
        for step in range(12):
            _submit(training, step, step)
        for step in range(2):
            _submit(aside, step, 100)
            _check(aside, 100)
        for step in range(12):
            _check(training, step)
    assert teacher.most_inside == 1
    # the second answer was there long before the twelve of the training
    assert [place for place, first in enumerate(teacher.order) if first == 100][-1] < 10


def test_a_session_wakes_a_sleeping_teacher_for_its_answer_only(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]]
) -> None:
    """The students of the training have the memory meanwhile; the next job's keep it awake."""
    teacher, _ = serving()
    with _student(folder / "teacher.sock") as training:
        _submit(training, 0, 100, Kind.HOLD)
        _submit(training, 1, 101, Kind.PHASE)
        _check(training, 100)
        assert (teacher.asleep, teacher.naps) == (True, 1)
        with _student(folder / "aside.sock") as aside:
            _submit(aside, 0, 1000)
            _check(aside, 1000)
            assert (teacher.asleep, teacher.naps) == (True, 2)
        _check(training, 101)
        _submit(training, 2, 102)  # without phases
        _check(training, 102)
        assert (teacher.asleep, teacher.naps) == (False, 2)


def test_a_teacher_that_cannot_sleep_says_so(
    folder: Path, serving: Callable[..., tuple[_Teacher, Serving]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = serving()

    def refuse() -> None:
        raise ModelError("it has no memory to give")

    monkeypatch.setattr(teacher, "sleep", refuse)
    with _student(folder / "teacher.sock") as training:
        _submit(training, 0, 100, Kind.PHASE)
        with pytest.raises(TransportError, match="ModelError: it has no memory to give"):
            training.receive(WAIT_S)


def test_turns_alternate_between_two_that_always_want_it() -> None:
    turns, order, started = Turns(), [], threading.Barrier(2)

    def work(name: str) -> None:
        started.wait()
        for _ in range(50):
            with turns:
                order.append(name)
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    longest = max(
        len(run) for run in "".join(order).replace("ab", "a b").replace("ba", "b a").split()
    )
    assert longest <= 5, order


def test_stop_serving_ends_both_and_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While students of both wait for answers that nobody asked for."""
    monkeypatch.setattr(roles, "_teacher", _Teacher())
    paths = folder / "teacher.sock", folder / "aside.sock"
    roles.serve(str(paths[0]), 2, 1, str(paths[1]))
    assert sorted(folder.glob("*.sock")) == sorted(paths)
    ends = [_student(path, 0, 2) for path in paths]  # rank 1 never comes
    with ThreadPoolExecutor(2) as pool:
        for end in ends:
            _submit(end, 0, 1)
        waiting = []
        for end in ends:
            _submit(end, 1, 1)
            waiting.append(pool.submit(lambda end=end: [end.receive(WAIT_S) for _ in range(2)]))
        time.sleep(0.1)
        start = time.perf_counter()
        roles.stop_serving()
        assert time.perf_counter() - start < 5
        for future in waiting:
            with pytest.raises(TransportError, match="told to stop"):
                future.result(WAIT_S)
    assert list(folder.iterdir()) == []
    roles.stop_serving()  # nothing to do


def test_a_job_without_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "_teacher", _Teacher())
    path = folder / "teacher.sock"
    roles.serve(str(path), 1, 1)
    with _student(path) as end:
        _submit(end, 0, 1)
        _check(end, 1)
    roles.stop_serving()
    assert list(folder.iterdir()) == []
