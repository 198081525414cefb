"""Requests, weights and errors in their order; a rollout engine that dies and one that follows."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from kdflow_lab.errors import DataError, ModelError, TransportError
from kdflow_lab.rollout.client import RolloutEnd
from kdflow_lab.rollout.sampling import Sample, Sampling
from kdflow_lab.rollout.serving import Serving
from kdflow_lab.transport.segment import NO_VERSION, WeightSegment

WAIT_S = 60.0
"""Only a test that fails waits this long."""


class _Backend:
    """Answers each prompt with its first id plus the weight's value, once it may."""

    backend = "transformers"
    dtype = torch.float32
    why = ""

    def __init__(self, *, copies: bool = False) -> None:
        self.copies = copies
        self.version = NO_VERSION
        self.weight = torch.zeros(1)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.began = threading.Event()
        self.refuses = False
        self.segment: WeightSegment | None = None

    def weights(self, segment: WeightSegment) -> None:
        if self.refuses:
            raise ModelError("they do not fit")
        self.segment = segment

    def load(self, version: int, buffer: int) -> None:
        assert self.segment is not None
        self.segment.check(buffer, version)
        self.weight = self.segment.views(buffer)["weight"]
        if self.copies:
            self.weight = self.weight.clone()
        self.version = version

    def generate(
        self,
        prompts: Sequence[NDArray],
        sampling: Sampling,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        self.began.set()
        before = float(self.weight[0, 0]) if self.version >= 0 else 0.0
        while not self.may_answer.wait(0.01):
            assert on_progress is not None
            on_progress(0, len(prompts))
        if prompts and len(prompts[0]) == 0:
            raise DataError("Prompt 0 is empty")
        after = float(self.weight[0, 0]) if self.version >= 0 else 0.0
        assert after == before, "the weights changed while answers were written"
        value = np.array([after], np.float32)
        return [
            Sample(number, 0, prompt[:1].astype(np.int32), value, True, self.version)
            for number, prompt in enumerate(prompts)
        ]

    def close(self) -> None:
        pass


class _Engine:
    """A backend that is served."""

    def __init__(self, path: Path, *, copies: bool = False) -> None:
        self.backend = _Backend(copies=copies)
        self.serving = Serving(self.backend, str(path), threads=1)

    def die(self) -> None:
        """Go as the kernel does it: connections closed, nothing said."""
        self.serving.close()


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        yield Path(folder) / "rollout.sock"
        assert list(Path(folder).iterdir()) == []


@pytest.fixture
def engine(path: Path) -> Iterator[_Engine]:
    made = _Engine(path)
    yield made
    made.backend.may_answer.set()
    made.serving.close()


def _student(value: float) -> nn.Module:
    model = nn.Linear(4, 4, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def _prompts(first: int) -> list[NDArray]:
    return [np.array([first, 1]), np.array([first + 1])]


def _answer(end: RolloutEnd) -> tuple[object, list[int], list[int], float]:
    """(tag, ids, versions, the weight's value) of the next answer."""
    got = end.receive(WAIT_S)
    ids = [int(one.ids[0]) for one in got.samples]
    return got.tag, ids, [one.version for one in got.samples], float(got.samples[0].logprobs[0])


def test_requests_are_answered_in_order_with_the_weights_before_them(
    path: Path, engine: _Engine
) -> None:
    with RolloutEnd(str(path)) as end:
        end.submit(_prompts(10), Sampling(), tag="own weights")
        for version in (3, 5):
            end.sync(_student(version), version=version)
            end.submit(_prompts(20), Sampling(), tag=version)
            end.submit(_prompts(30), Sampling(), tag=-version)
        assert end.pending == 5
        assert _answer(end) == ("own weights", [10, 11], [-1, -1], 0.0)
        for version in (3, 5):
            assert _answer(end) == (version, [20, 21], [version] * 2, float(version))
            assert _answer(end) == (-version, [30, 31], [version] * 2, float(version))
        assert end.pending == 0
        assert not end.ready()
        with pytest.raises(TransportError, match="Nothing to receive"):
            end.receive()


def test_one_buffer_is_written_only_while_the_engine_is_idle(path: Path, engine: _Engine) -> None:
    with RolloutEnd(str(path)) as end:
        end.sync(_student(1), version=1)
        engine.backend.may_answer.clear()
        end.submit(_prompts(1), Sampling())
        assert engine.backend.began.wait(WAIT_S)
        synced = threading.Event()

        def sync() -> None:
            end.sync(_student(2), version=2)
            synced.set()

        thread = threading.Thread(target=sync)
        thread.start()
        assert not synced.wait(0.7)  # longer than a short wait for an idle engine
        engine.backend.may_answer.set()
        thread.join(WAIT_S)
        assert synced.is_set()
        end.submit(_prompts(1), Sampling())
        assert [_answer(end)[2:] for _ in range(2)] == [([1, 1], 1.0), ([2, 2], 2.0)]


@pytest.mark.parametrize("copies", [False, True])
def test_weights_can_be_written_while_others_answer(path: Path, copies: bool) -> None:
    """With two buffers, or where the engine has copied what it answers with."""
    engine = _Engine(path, copies=copies)
    with RolloutEnd(str(path), buffers=1 if copies else 2) as end:
        end.sync(_student(1), version=1)
        engine.backend.may_answer.clear()
        end.submit(_prompts(1), Sampling())
        assert engine.backend.began.wait(WAIT_S)
        if copies:
            assert not end.ready()  # takes what was said: the first weights are loaded
        assert end.sync(_student(2), version=2) < 0.5
        end.submit(_prompts(1), Sampling())
        engine.backend.may_answer.set()
        assert [_answer(end)[2:] for _ in range(2)] == [([1, 1], 1.0), ([2, 2], 2.0)]
        end.sync(_student(3), version=3)
        end.submit(_prompts(1), Sampling())
        assert _answer(end)[2:] == ([3, 3], 3.0)
    engine.serving.close()


def test_a_request_that_fails_is_told_and_the_next_one_works(path: Path, engine: _Engine) -> None:
    with RolloutEnd(str(path)) as end:
        end.submit([np.empty(0, np.int32)], Sampling())
        end.submit(_prompts(7), Sampling())
        with pytest.raises(TransportError, match="could not answer: DataError: Prompt 0 is empty"):
            end.receive(WAIT_S)
        assert _answer(end)[1] == [7, 8]


def test_weights_that_are_not_taken_end_everything(path: Path, engine: _Engine) -> None:
    engine.backend.refuses = True
    with RolloutEnd(str(path), patience_s=5) as end:
        with pytest.raises(TransportError, match="did not take the weights: ModelError: they do"):
            end.sync(_student(1), version=1)
            end.submit(_prompts(7), Sampling())
            end.receive(WAIT_S)
        with pytest.raises(TransportError, match="did not take the weights"):
            end.sync(_student(1), version=2)


def test_an_engine_that_dies_is_named_at_once(path: Path, engine: _Engine) -> None:
    with RolloutEnd(str(path)) as end:
        engine.backend.may_answer.clear()
        end.submit(_prompts(1), Sampling())
        assert engine.backend.began.wait(WAIT_S)
        threading.Timer(0.2, engine.die).start()
        with pytest.raises(TransportError, match=r"rollout engine \(pid \d+\) died"):
            end.receive(WAIT_S)
        with pytest.raises(TransportError, match="died"):
            end.sync(_student(1), version=1)
        with pytest.raises(TransportError, match="died"):
            end.submit(_prompts(1), Sampling())


@pytest.mark.parametrize("buffers", [1, 2])
def test_the_next_engine_gets_the_weights_and_what_was_not_answered(
    path: Path, buffers: int
) -> None:
    first = _Engine(path)
    with RolloutEnd(str(path), buffers=buffers, patience_s=WAIT_S) as end:
        end.sync(_student(1), version=1)
        end.submit(_prompts(10), Sampling(), tag="a")
        assert _answer(end)[2:] == ([1, 1], 1.0)
        first.backend.may_answer.clear()
        first.backend.began.clear()
        end.submit(_prompts(20), Sampling(), tag="b")
        end.submit(_prompts(30), Sampling(), tag="c")
        assert first.backend.began.wait(WAIT_S)
        if buffers == 2:
            end.sync(_student(2), version=2)
        end.submit(_prompts(40), Sampling(), tag="d")
        first.die()
        second = _Engine(path)
        last = 2 if buffers == 2 else 1
        assert _answer(end) == ("b", [20, 21], [1, 1], 1.0)
        assert _answer(end) == ("c", [30, 31], [1, 1], 1.0)
        assert _answer(end) == ("d", [40, 41], [last] * 2, float(last))
        second.die()
        third = _Engine(path)
        end.submit(_prompts(50), Sampling(), tag="e")
        assert _answer(end) == ("e", [50, 51], [last] * 2, float(last))
        end.sync(_student(4), version=4)
        end.submit(_prompts(60), Sampling(), tag="f")
        assert _answer(end) == ("f", [60, 61], [4, 4], 4.0)
    third.die()


def test_another_student_may_come_when_one_has_gone(path: Path, engine: _Engine) -> None:
    """The first leaves in the middle of an answer."""
    end = RolloutEnd(str(path))
    engine.backend.may_answer.clear()
    end.submit(_prompts(1), Sampling())
    assert engine.backend.began.wait(WAIT_S)
    end.close()
    with RolloutEnd(str(path), timeout_s=WAIT_S) as other:
        engine.backend.may_answer.set()
        other.submit(_prompts(5), Sampling())
        assert _answer(other)[1] == [5, 6]


def test_time_is_over_and_nobody_listens(path: Path, engine: _Engine) -> None:
    with RolloutEnd(str(path)) as end:
        engine.backend.may_answer.clear()
        end.submit(_prompts(1), Sampling())
        with pytest.raises(TransportError, match=r"has not answered within 0\.1 s"):
            end.receive(0.1)
    with pytest.raises(TransportError, match="No rollout engine listens"):
        RolloutEnd(str(path) + "-other", timeout_s=0.1)


def test_only_rank_0_speaks(path: Path) -> None:
    end = RolloutEnd(str(path), rank=1)
    with pytest.raises(TransportError, match="Only rank 0"):
        end.submit(_prompts(1), Sampling())
    end.close()
