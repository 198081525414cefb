"""Teacher and students that take turns, as where they share a GPU: here on the CPU.

The teacher is this file run as a script; its model is real, its sleep moves nothing on a CPU and
is counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import sequences, write_model

import kdflow_lab
from kdflow_lab.data.batches import MicroBatch
from kdflow_lab.errors import TransportError
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.teacher.base import serve
from kdflow_lab.teacher.transformers import TransformersTeacher
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import TeacherEnd

H, TOKENS = 64, 24
WAIT_S = 120.0
"""Only a test that fails waits this long."""


def _serve(path: str, model: str, world_size: int) -> None:
    """A teacher in a process of its own; says at the end how often it slept."""
    teacher = TransformersTeacher(model)
    with TeacherEnd(path, world_size=world_size) as end:
        print("listening", flush=True)
        serve(teacher, end)
    print(teacher.naps, teacher.asleep, flush=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("llama", tmp_path_factory.mktemp("tiny"))


def _batch(rank: int, number: int) -> MicroBatch:
    """Micro-batch `number` of a rank, two a step, of different lengths."""
    (ids,) = sequences([TOKENS - number], seed=100 * rank + number)
    rows = torch.arange(2, len(ids))
    ends = torch.tensor([0, len(ids)], dtype=torch.int32)
    step, index = divmod(number, 2)
    return MicroBatch(ids.long(), ends, rows, ids[rows].long(), step, index, (0,))


@contextmanager
def _taught(model: Path, *, slots: int, world_size: int) -> Iterator[tuple[list[StudentEnd], list]]:
    """Students of a teacher's process, and what it says when they have closed."""
    said: list[str] = []
    layout = SlotLayout(
        max_tokens=TOKENS, max_sequences=1, max_rows=TOKENS, hidden_size=H, dtype_name="float32"
    )
    package = str(Path(kdflow_lab.__file__).parents[1])
    tests = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        path = f"{folder}/teacher.sock"
        with subprocess.Popen(
            [sys.executable, __file__, path, str(model), str(world_size)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((package, tests)),
                "OMP_NUM_THREADS": "1",
            },
        ) as teacher:
            assert teacher.stdout is not None
            try:
                assert teacher.stdout.readline() == "listening\n"
                with ExitStack() as stack:
                    yield (
                        [
                            stack.enter_context(
                                StudentEnd(
                                    path,
                                    rank=rank,
                                    world_size=world_size,
                                    layout=layout,
                                    slots=slots,
                                    timeout_s=WAIT_S,
                                )
                            )
                            for rank in range(world_size)
                        ],
                        said,
                    )
                said += teacher.stdout.readline().split()
            finally:
                teacher.kill()


def _learn(end: StudentEnd, count: int, phase: int | None) -> list[torch.Tensor]:
    """Use `count` micro-batches, and return their rows."""
    feed = TeacherFeed(
        (_batch(end.rank, number) for number in range(count)), end, timeout_s=WAIT_S, phase=phase
    )
    got = []
    for number in range(count):
        batch, rows = feed.next()
        assert rows is not None
        assert (batch.step, batch.index) == (rows.step, rows.index) == divmod(number, 2)
        got.append(rows.tensor.clone())
        rows.release()
        feed.refill()
    with pytest.raises(StopIteration):
        feed.next()
    return got


@pytest.mark.parametrize(
    ("phase", "count", "naps"),
    [(2, 5, 3), (3, 3, 1), (1, 2, 2), (None, 4, 0)],
    ids=["the last phase is short", "one phase", "one by one", "no turns"],
)
def test_rows_are_the_same_and_the_teacher_sleeps_once_a_phase(
    model: Path, phase: int | None, count: int, naps: int
) -> None:
    with (
        _taught(model, slots=phase or 2, world_size=2) as (ends, said),
        ThreadPoolExecutor(2) as pool,
    ):
        got = list(pool.map(lambda end: _learn(end, count, phase), ends))
    assert said == [str(naps), str(bool(naps))]
    here = TransformersTeacher(str(model))
    for rank, rows in enumerate(got):
        for number, found in enumerate(rows):
            batch = _batch(rank, number)
            wanted = torch.empty(len(batch.rows), H)
            here.hidden_states(batch.input_ids.int(), batch.cu_seqlens, batch.rows.int(), wanted)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def _ask(end: StudentEnd, number: int, kind: Kind) -> None:
    batch = _batch(end.rank, number)
    end.submit(
        step=batch.step,
        index=batch.index,
        input_ids=batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        rows=batch.rows,
        kind=kind,
    )


def test_nobody_is_answered_before_all_have_asked_for_their_phase(model: Path) -> None:
    """A rank that still computes has not given its memory to the teacher yet."""
    with _taught(model, slots=2, world_size=2) as (ends, said):
        for number, kind in enumerate((Kind.HOLD, Kind.PHASE)):
            _ask(ends[0], number, kind)
        _ask(ends[1], 0, Kind.HOLD)
        for end in ends:
            with pytest.raises(TransportError, match="has not answered"):
                end.receive(0.3)
        _ask(ends[1], 1, Kind.PHASE)
        for end in ends:
            for _ in range(2):
                end.receive(WAIT_S).release()
    assert said == ["1", "True"]


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
