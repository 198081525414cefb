"""Whatever the depth, a step's rows come from the weights of the last update before it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdflow_lab.config import DistillConfig
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import ModelError, TransportError
from kdflow_lab.lessons import DataLessons
from kdflow_lab.mean_teacher.follow import may_ask
from kdflow_lab.mean_teacher.link import WeightLink
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.teacher.serving import Serving
from kdflow_lab.training import Training
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.request import Request
from kdflow_lab.transport.segment import WeightSegment, laid_out
from kdflow_lab.transport.student_end import StudentEnd

STEPS = 9
EVERY = 3


class _Stamping:
    """Its hidden rows are the version of its weights."""

    backend = "transformers"
    hidden_size = 4
    dtype = torch.float32
    batch_tokens = 0
    asleep = False
    version = 0

    def __init__(self) -> None:
        self.segment: WeightSegment | None = None
        self.steps: list[int] = []
        self.naps = 0

    def fill(self, requests: Sequence[Request]) -> None:
        assert not self.asleep
        for request in requests:
            self.steps.append(request.step)
            request.out.fill_(self.version)

    def weights(self, segment: WeightSegment) -> None:
        self.segment = segment

    def load(self, version: int) -> dict[str, float]:
        assert not self.asleep
        assert self.segment is not None
        self.segment.check(0, version)
        if version == 99:
            raise ModelError("They drifted.")
        if version == 98:
            raise ZeroDivisionError("by nothing")
        self.version = version
        return {"largest": 0.0}

    def restore(self) -> None:
        self.version = 0

    def sleep(self) -> None:
        self.asleep, self.naps = True, self.naps + 1

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None:
        pass


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kdf-") as name:
        yield Path(name)


@pytest.fixture
def teacher() -> _Stamping:
    return _Stamping()


@pytest.fixture
def serving(folder: Path, teacher: _Stamping) -> Iterator[Serving]:
    made = Serving(
        teacher, str(folder / "t"), str(folder / "a"), world_size=1, threads=1,
        weights=str(folder / "w"),
    )  # fmt: skip
    yield made
    made.close()
    assert list(folder.iterdir()) == []


@pytest.fixture
def segment() -> Iterator[WeightSegment]:
    made = WeightSegment.create(laid_out([("one", (2,))], torch.float32))
    yield made
    made.close()


@pytest.fixture
def link(serving: Serving, folder: Path, segment: WeightSegment) -> Iterator[WeightLink]:
    made = WeightLink(str(folder / "w"), timeout_s=5)
    made.hand_on(segment)
    yield made
    made.close()


def test_a_step_may_be_asked_for_once_its_update_is_made() -> None:
    assert all(may_ask(step, done=0, every=None) for step in range(9))
    allowed = {
        done: [step for step in range(done, 9) if may_ask(step, done=done, every=3)]
        for done in range(7)
    }
    assert allowed == {
        0: [0, 1, 2],
        1: [1, 2],
        2: [2],
        3: [3, 4, 5],
        4: [4, 5],
        5: [5],
        6: [6, 7, 8],
    }
    assert not may_ask(1, done=0, every=1)


@pytest.mark.parametrize(
    ("depth", "phase", "ahead"), [(0, None, 0), (1, None, 1), (4, None, 4), (1, 4, 3), (1, 2, 1)]
)
def test_no_row_is_computed_across_an_update(
    depth: int,
    phase: int | None,
    ahead: int,
    folder: Path,
    teacher: _Stamping,
    link: WeightLink,
    segment: WeightSegment,
) -> None:
    lengths = np.full(2 * STEPS, 6)
    table = TokenTable(
        input_ids=np.ones(int(lengths.sum()), np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
        response_mask=np.tile(np.array([0, 0, 1, 1, 1, 1], np.uint8), len(lengths)),
        row_index=np.arange(len(lengths), dtype=np.int32),
    )
    config = DistillConfig.parse(
        steps=STEPS, batch_size=2, micro_batch_rows=1, teacher_update_every=EVERY
    )
    lessons = DataLessons(table, config, 1)
    run: Any = SimpleNamespace(
        step=0, config=config, lessons=lessons, place=SimpleNamespace(rank=0)
    )
    layout = SlotLayout(
        max_tokens=8, max_sequences=2, max_rows=8, hidden_size=4, dtype_name="float32"
    )
    slots = phase or max(1, depth)
    with StudentEnd(str(folder / "t"), rank=0, world_size=1, layout=layout, slots=slots) as end:
        feed = TeacherFeed(Training.batches(run), end, ahead=depth > 0, timeout_s=30, phase=phase)
        furthest = 0
        for step in range(STEPS):
            for _ in lessons.lesson(step).plan.micro_batches:
                batch, rows = feed.next()
                assert rows is not None
                assert batch.step == step
                assert set(rows.tensor.flatten().tolist()) == {step // EVERY * EVERY}
                rows.release()
                feed.refill()
                furthest = max(furthest, len(feed._sent))
            run.step = step + 1
            if run.step % EVERY == 0:
                assert not feed._sent
                segment.stamp(0, run.step)
                slept = teacher.asleep
                assert link.load(run.step)["drift"] == {"largest": 0.0}
                assert teacher.asleep == slept
        assert furthest == ahead  # between two updates the pipeline is as deep as it was
        with pytest.raises(StopIteration):
            feed.next()
    assert (teacher.naps > 0) == (phase is not None)


def test_what_the_teacher_does_not_take_is_said_and_can_be_tried_again(
    link: WeightLink, segment: WeightSegment, teacher: _Stamping
) -> None:
    segment.stamp(0, 99)
    with pytest.raises(ModelError, match=r"did not take the student's weights: They drifted\."):
        link.load(99)
    segment.stamp(0, 98)
    with pytest.raises(TransportError, match="ZeroDivisionError: by nothing"):
        link.load(98)
    with pytest.raises(TransportError, match="holds version 98, expected 5"):
        link.load(5)
    segment.stamp(0, 5)
    link.load(5)
    assert teacher.version == 5


def test_a_teacher_that_is_gone_or_does_not_follow_is_said(
    serving: Serving, link: WeightLink, folder: Path
) -> None:
    with pytest.raises(TransportError, match="takes no weights"):
        WeightLink(str(folder / "nobody"), timeout_s=1)
    serving.close()
    with pytest.raises(TransportError, match="teacher died"):
        link.load(1)
