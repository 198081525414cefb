"""Steps whose loss is no number: left out, counted, kept, and too many of them end the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from fakes import RUNNING, write_run
from one_step import make_table

from kdflow_lab import guards
from kdflow_lab.data import kept
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.errors import RunError
from kdflow_lab.guards import SkipGuard
from kdflow_lab.rundir import RunDirectory

TABLE = make_table()
ROW_INDEX = np.arange(500, 500 + len(TABLE), dtype=np.int32)  # rows were left out of the data


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "a", RUNNING).directory


def _guard(directory: RunDirectory, *, rank: int = 0, ranks: int = 1, most: int = 3) -> SkipGuard:
    return SkipGuard(directory, rank=rank, ranks=ranks, most=most)


def _batches(*rows: list[int]) -> list[MicroBatch]:
    return [pack(TABLE, one, step=0, index=index) for index, one in enumerate(rows)]


def _skip(guard: SkipGuard, step: int, *rows: list[int]) -> bool:
    batches = _batches(*(rows or ([0, 1],)))
    return guard.saw(step, loss=math.nan, grad_norm=1.0, batches=batches, row_index=ROW_INDEX)


def _skipped(directory: RunDirectory) -> list[dict]:
    return [event for event in directory.events() if event["event"] == "skipped"]


@pytest.mark.parametrize(
    ("loss", "grad_norm", "is_left_out"),
    [
        (1.0, 1.0, False),
        (0.0, 0.0, False),
        (1e38, 1e38, False),
        (math.nan, 1.0, True),
        (1.0, math.nan, True),
        (math.inf, 1.0, True),
        (1.0, math.inf, True),
        (-math.inf, math.nan, True),
    ],
)
def test_what_is_no_number_is_left_out(
    directory: RunDirectory, loss: float, grad_norm: float, is_left_out: bool
) -> None:
    guard = _guard(directory)
    assert (
        guard.saw(4, loss=loss, grad_norm=grad_norm, batches=_batches([0]), row_index=ROW_INDEX)
        is is_left_out
    )
    assert len(_skipped(directory)) == is_left_out
    assert directory.skipped.exists() is is_left_out


def test_event_says_what_and_where(directory: RunDirectory) -> None:
    guard = _guard(directory)
    _skip(guard, 4)
    _skip(guard, 5)
    first, second = _skipped(directory)
    assert (first["step"], first["loss"], first["grad_norm"]) == (4, "nan", "1.0")
    assert (first["in_a_row"], second["in_a_row"]) == (1, 2)
    assert first["batch"] == str(directory.skipped / "4-0.safetensors")
    assert "Step 4 was left out: its loss is nan" in first["message"]


def test_too_many_in_a_row_end_the_run(directory: RunDirectory) -> None:
    guard = _guard(directory, most=3)
    for step in (1, 2):
        _skip(guard, step)
        guard.check(step)
    assert not guard.saw(3, loss=1.0, grad_norm=1.0, batches=[], row_index=ROW_INDEX)
    for step in (4, 5):
        _skip(guard, step)
        guard.check(step)
    _skip(guard, 6)
    with pytest.raises(RunError, match=r"3 steps in a row, up to 6.*kdflow replay a@6"):
        guard.check(6)


def test_every_ranks_part_is_kept_and_rank_0_says_it(directory: RunDirectory) -> None:
    for rank, rows in enumerate(([[3, 5], []], [[4], [0, 1]])):
        _skip(_guard(directory, rank=rank, ranks=2), 9, *rows)
    assert len(_skipped(directory)) == 1
    rows, missing = kept.read(directory.skipped, 9)
    assert missing == []
    assert [row.row for row in rows] == [500, 501, 503, 504, 505]
    for row in rows:
        ids, mask = TABLE.row(row.row - 500)
        assert row.input_ids.tolist() == ids[:-1].tolist()
        assert row.rows.tolist() == (np.flatnonzero(mask) - 1).tolist()
        assert row.labels.tolist() == ids[mask == 1].tolist()


def test_part_that_is_missing_is_told(directory: RunDirectory) -> None:
    _skip(_guard(directory, rank=1, ranks=3), 9, [2])
    rows, missing = kept.read(directory.skipped, 9)
    assert ([row.row for row in rows], missing) == ([502], [0, 2])


def test_attempt_with_fewer_ranks_replaces_an_earlier_one(directory: RunDirectory) -> None:
    for rank in range(2):
        _skip(_guard(directory, rank=rank, ranks=2), 9, [rank])
    _skip(_guard(directory), 9, [0, 1])
    rows, missing = kept.read(directory.skipped, 9)
    assert ([row.row for row in rows], missing) == ([500, 501], [])


def test_run_that_skips_all_the_time_fills_no_disk(directory: RunDirectory) -> None:
    both = [_guard(directory, rank=rank, ranks=2, most=999) for rank in range(2)]
    for step in range(1, guards.KEPT_BATCHES + 4):
        for guard in both:
            _skip(guard, step)
    assert kept.steps(directory.skipped) == list(range(1, guards.KEPT_BATCHES + 1))
    assert len(list(directory.skipped.iterdir())) == 2 * guards.KEPT_BATCHES  # of both ranks
    events = _skipped(directory)
    assert len(events) == guards.KEPT_BATCHES + 3
    assert [event["batch"] for event in events[-3:]] == [None] * 3


def test_batch_that_cannot_be_kept_ends_no_run(directory: RunDirectory) -> None:
    """On one rank alone it would leave the others in a collective."""
    directory.skipped.write_text("a file where the folder should be")
    assert _skip(_guard(directory), 4)
    assert _skipped(directory)[0]["batch"] is None


def test_what_is_kept_is_whole_or_not_there(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert _skip(_guard(directory), 4)
    assert list(directory.skipped.iterdir()) == []
