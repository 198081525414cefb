"""A cache before a real ring and a real teacher: same rows, and nothing is asked twice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kdflow_lab.cache.end import CachedRows, CachingEnd
from kdflow_lab.cache.identity import Identity
from kdflow_lab.cache.store import Store
from kdflow_lab.errors import TransportError
from kdflow_lab.hub import resolve_model
from kdflow_lab.teacher.serving import Serving
from kdflow_lab.teacher.transformers import TransformersTeacher
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.request import Request
from kdflow_lab.transport.student_end import StudentEnd

ROWS = [np.arange(start, start + length) for start, length in ((5, 9), (40, 3), (70, 20), (9, 6))]


class _Counting(TransformersTeacher):
    """Says how many tokens it ran."""

    tokens = 0

    def fill(self, requests: Sequence[Request]) -> None:
        self.tokens += sum(request.num_tokens for request in requests)
        super().fill(requests)


@pytest.fixture(scope="module")
def teacher() -> _Counting:
    return _Counting(resolve_model("zoo/teacher"))


@pytest.fixture
def connect(teacher: _Counting, tmp_path: Path) -> Iterator[Callable[..., CachingEnd]]:
    teacher.tokens = 0
    identity = Identity("t", "w", "c", "transformers", "float32", teacher.hidden_size)
    layout = SlotLayout(
        max_tokens=64,
        max_sequences=4,
        max_rows=64,
        hidden_size=teacher.hidden_size,
        dtype_name="float32",
    )
    made: list[Serving] = []
    with tempfile.TemporaryDirectory(prefix="kdf-") as sockets:

        def start(**options: Callable[[str], None]) -> CachingEnd:
            path = f"{sockets}/{len(made)}.sock"
            made.append(Serving(teacher, path, None, world_size=1, threads=1))
            end = StudentEnd(path, rank=0, world_size=1, layout=layout, slots=2)
            return CachingEnd(end, Store(tmp_path, identity), **options)

        yield start
        for serving in made:
            serving.close()


def _asked(chosen: list[int]) -> dict[str, np.ndarray]:
    """All positions of some rows but the first two of each."""
    lengths = [len(ROWS[one]) for one in chosen]
    ends = np.cumsum([0, *lengths])
    wanted = [np.arange(start + 2, end) for start, end in pairwise(ends)]
    return {
        "input_ids": np.concatenate([ROWS[one] for one in chosen] or [np.empty(0, np.int64)]),
        "cu_seqlens": ends,
        "rows": np.concatenate(wanted or [np.empty(0, np.int64)]),
    }


def _ask(end: CachingEnd, chosen: list[int], step: int = 0) -> torch.Tensor:
    end.submit(step=step, index=0, **_asked(chosen))  # type: ignore[arg-type]
    received = end.receive(60)
    assert (received.step, received.index) == (step, 0)
    hidden = received.tensor.clone()
    received.release()
    return hidden


def test_second_time_comes_from_the_cache_bit_for_bit(
    connect: Callable[..., CachingEnd], teacher: _Counting
) -> None:
    with connect() as end:
        first = _ask(end, [0, 1, 2, 3])
        assert end.take_counts() == (30, 0)
        asked = teacher.tokens
        assert asked == 38
        parts = dict(enumerate(first.split([7, 1, 18, 4])))
        again = _ask(end, [2, 0], step=1)
        assert torch.equal(again, torch.cat([parts[2], parts[0]]))
        assert end.take_counts() == (25, 25)
        assert teacher.tokens == asked
    with connect() as end:  # another run
        assert torch.equal(_ask(end, [1, 3]), torch.cat([parts[1], parts[3]]))
        assert teacher.tokens == asked


def test_part_of_a_micro_batch_is_asked_and_completes_the_cache(
    connect: Callable[..., CachingEnd], teacher: _Counting
) -> None:
    with connect() as end:
        alone = {one: _ask(end, [one], step=one) for one in (0, 2)}
        before = teacher.tokens
        mixed = _ask(end, [1, 2, 3, 0], step=3)
        assert teacher.tokens - before == len(ROWS[1]) + len(ROWS[3])
        one, two, three, zero = mixed.split([1, 18, 4, 7])
        assert torch.equal(two, alone[2]) and torch.equal(zero, alone[0])
        before = teacher.tokens
        assert torch.equal(_ask(end, [3, 1], step=4), torch.cat([three, one]))
        assert teacher.tokens == before


def test_empty_micro_batch_and_one_that_is_asked_ahead(
    connect: Callable[..., CachingEnd], teacher: _Counting
) -> None:
    with connect() as end:
        assert _ask(end, []).shape == (0, end.layout.hidden_size)
        assert end.teacher_rests
        end.submit(step=1, index=0, **_asked([0]))  # type: ignore[arg-type]
        end.submit(step=2, index=0, **_asked([0]))  # type: ignore[arg-type]
        assert not end.can_submit and not end.teacher_rests
        end.take_counts()
        before = teacher.tokens
        first = end.receive(60)
        wanted = first.tensor.clone()
        first.release()
        end.submit(step=3, index=0, **_asked([1, 0]))  # type: ignore[arg-type]
        for rows in (end.receive(60).tensor, end.receive(60).tensor[1:]):
            assert torch.equal(rows, wanted)
        assert end.take_counts() == (7 + 7 + 8, 7 + 7)
        assert teacher.tokens - before <= len(ROWS[0]) + len(ROWS[1])


def test_released_rows_are_not_read(connect: Callable[..., CachingEnd]) -> None:
    with connect() as end:
        _ask(end, [0])
        end.submit(step=1, index=0, **_asked([0]))  # type: ignore[arg-type]
        rows = end.receive(60)
        assert isinstance(rows, CachedRows) and end.can_submit  # the slot is free already
        rows.release()
        rows.release()
        with pytest.raises(TransportError, match="released"):
            _ = rows.tensor


def test_full_disk_is_said_once_and_the_rows_go_on(
    connect: Callable[..., CachingEnd], teacher: _Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of `test_segment` is really full; here only what the student sees counts."""
    import errno
    import os

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    with connect(on_full=said.append) as end:
        kept = _ask(end, [0])
        monkeypatch.setattr(os, "pwrite", no_room)
        for step in (1, 2):
            assert len(_ask(end, [1, 2], step)) == 19
        monkeypatch.undo()
        assert len(said) == 1 and "No space left" in said[0]
        before = teacher.tokens
        assert torch.equal(_ask(end, [0], 3), kept)
        assert teacher.tokens == before
