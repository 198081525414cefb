"""Lessons of a stream, in a group of one: read ahead, the same from any step, errors on time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from kdflow_lab import prepare_stream, streaming, zoo
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.jobs import StudentPlace, TeacherInfo, TrainJob
from kdflow_lab.lessons import Lesson
from kdflow_lab.prepare import Meeting
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.streaming import StreamLessons

STUDENT = str(zoo.path("zoo/student"))
MET = Meeting("vanilla_kd", 1024, 1024)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """The only rank of a group."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        meet = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Two files with weights."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("large", 90), ("small", 20)):
        rows = zoo.dataset("zoo/tasks", rows=count, seed=count).to_list()
        lines = [json.dumps({"messages": row["messages"]}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{"]))
    return {str(folder / "large.jsonl"): 3, str(folder / "small.jsonl"): 1}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run's."""
    directory = RunDirectory(tmp_path / "run")
    directory.create({})
    return directory


@pytest.fixture
def opened(files: dict[str, float], directory: RunDirectory) -> Iterator[Any]:
    """Opens lessons, and closes them behind the test."""
    made: list[StreamLessons] = []

    def make(*, world_size: int = 1, teacher: TeacherInfo | None = None, **changes: Any) -> Any:
        options = {
            "data": files,
            "steps": 60,
            "batch_size": 8,
            "max_length": 64,
            "shuffle_buffer": 16,
            "on_bad_rows": "skip",
            **changes,
        }
        config = DistillConfig.parse(streaming=True, **options)
        place = StudentPlace(0, world_size, "cpu", 1, None, "")
        job = TrainJob(place, str(directory.path), STUDENT, teacher, {})
        made.append(prepare_stream.open_stream(job, config, MET, directory))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _ids(lesson: Lesson | None) -> list[list[int]]:
    assert lesson is not None
    rows = [row for by_rank in lesson.plan.micro_batches for part in by_rank for row in part]
    return [lesson.table.row(row)[0].tolist() for row in sorted(rows)]


def _steps(lessons: StreamLessons, start: int, stop: int) -> list[list[list[int]]]:
    found = []
    for step in range(start, stop):
        lessons.prepare(step)
        found.append(_ids(lessons.lesson(step)))
    return found


def _events(directory: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [event for event in directory.events() if event["event"] == name]


def test_steps_are_the_same_from_any_step_by_any_chunk_and_number_of_ranks(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = opened()
    expected, states = [], {}
    for step in range(60):
        lessons.prepare(step)
        expected.append(_ids(lessons.lesson(step)))
        states[step] = json.loads(json.dumps(lessons.state(step)))
    states[60] = lessons.state(60)
    assert all(len(rows) == 8 for rows in expected)
    for start, chunk_rows, ranks in ((0, 8, 2), (7, 256, 3), (32, 40, 1), (59, 64, 2)):
        monkeypatch.setattr(streaming, "CHUNK_ROWS", chunk_rows)
        again = opened(world_size=ranks)
        again.begin(start, states[start])
        assert _steps(again, start, 60) == expected[start:]
    more = opened(steps=64)
    more.begin(60, states[60])
    assert _steps(more, 60, 64) == _steps(opened(steps=64), 0, 64)[60:]


def test_the_next_chunk_is_there_before_it_is_needed_and_none_behind_the_last_step(
    opened: Any,
) -> None:
    lessons = opened(steps=70, batch_size=32)  # 8 steps a chunk
    lessons.prepare(0)
    assert lessons.lesson(15) is not None and lessons.lesson(16) is None
    lessons.prepare(7)
    assert lessons.lesson(16) is None
    lessons.prepare(8)
    assert lessons.lesson(23) is not None and len(lessons._tables) == 2
    few = opened(steps=3)
    few.prepare(0)
    assert few.lesson(2) is not None and few.lesson(3) is None
    few._config.steps = 40  # as `set(steps=40)` does at a boundary
    few.prepare(1)
    assert few.lesson(34) is not None and few.lesson(35) is None


def test_what_is_read_is_what_is_needed(opened: Any, directory: RunDirectory) -> None:
    """Two steps need 16 rows: no file ends, and no malformed last line is met."""
    _steps(opened(steps=2, on_bad_rows="raise", shuffle_buffer=1), 0, 2)
    (said,) = _events(directory, "data")
    assert said["streaming"] and [one["share"] for one in said["sources"]] == [0.75, 0.25]
    assert not _events(directory, "warning")


def test_ends_and_bad_rows_are_said_once(opened: Any, directory: RunDirectory) -> None:
    _steps(opened(), 0, 60)  # 480 rows: four passes of 90 and six of 20
    ended = [event for event in _events(directory, "data") if "message" in event]
    assert sorted((Path(one["data"]).stem, one["rows"], one["kept"]) for one in ended) == [
        ("large", 91, 90),
        ("small", 21, 20),
    ]
    warned = [event["message"] for event in _events(directory, "warning")]
    assert len(warned) == 2 and all(".jsonl" in one and "not JSON" in one for one in warned)


def test_a_bad_row_raises_where_it_comes(opened: Any) -> None:
    lessons = opened(on_bad_rows="raise")
    with pytest.raises(DataError, match=r"(large.jsonl:91|small.jsonl:21): not JSON"):
        _steps(lessons, 0, 60)


def test_bounds_hold_for_whatever_comes(opened: Any) -> None:
    lessons = opened(micro_batch_tokens=100, micro_batch_rows=3)
    assert lessons.sizes == (100, 3, 100)
    for step in range(10):
        lessons.prepare(step)
        table, plan = lessons.lesson(step)
        for by_rank in plan.micro_batches:
            for part in by_rank:
                assert len(part) <= 3 and (table.lengths[part] - 1).sum() <= 100
    assert opened(batch_size=1).sizes == (63, 1, 63)


def test_places_in_other_data_are_not_followed(opened: Any, directory: RunDirectory) -> None:
    lessons = opened()
    _steps(lessons, 0, 5)
    state = lessons.state(5)
    for other, why in ((opened(seed=1), "was of other data"), (opened(), "does not say")):
        other.begin(5, state if "other" in why else None)
        assert other.state(5)["places"] == [[0, 0], [0, 0]]
        assert why in _events(directory, "warning")[-1]["message"]
    weighted = opened(batch_size=4)  # no matter of places
    weighted.begin(5, state)
    assert weighted.state(5)["places"] == state["places"]


def test_a_teacher_that_takes_shorter_rows_is_refused_before_anything_is_read(opened: Any) -> None:
    teacher = TeacherInfo(STUDENT, "sglang", "", 8, "float32", 1, {}, longest=31)
    with pytest.raises(DataError, match=r"max_length is 64, .* up to 32 .* Lower max_length to 32"):
        opened(teacher=teacher)


def test_missing_data_is_named_with_the_nearest(opened: Any, files: dict[str, float]) -> None:
    name = next(iter(files)).replace("large", "lrage")
    with pytest.raises(DataError, match=r"Did you mean 'large.jsonl'"):
        opened(data=name)


def test_lmbda_cannot_be_set(opened: Any) -> None:
    with pytest.raises(ConfigError, match="off-policy"):
        opened().check({"lmbda": 0.5})
