"""Rows read as they are needed: all of them, each pass in an order of its own, from any place."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from kdflow_lab.data import stream
from kdflow_lab.data.rows import SOURCE, BadRow
from kdflow_lab.data.sources import load
from kdflow_lab.data.stream import Cursor, StreamRow, first_rows, opener, passes
from kdflow_lab.errors import ConfigError, DataError

COUNT = 23
START = Cursor()


def _row(number: int) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "completion": f"A{number}"}


def _write(folder: Path, kind: str) -> str:
    rows = [_row(number) for number in range(COUNT)]
    path = folder / f"mine.{kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f"Q{k},A{k}\n" for k in range(COUNT)))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    else:
        path.mkdir()
        for part, some in enumerate((rows[:9], rows[9:])):
            text = "\n".join(map(json.dumps, some))
            (path / f"train-{part}-of-2.jsonl").write_text(text)
    return str(path)


def _open(name: str, **options: Any) -> stream.OpenRows:
    return opener(name, **{"split": "train", "rows": None, "seed": 0, **options})


def _stream(
    open_rows: stream.OpenRows, count: int, *, buffer: int = 5, at: Cursor = START, seed: int = 3
) -> list[StreamRow]:
    rows = passes(open_rows, shuffle_buffer=buffer, seed=[seed, 0], at=at, name="mine")
    return list(islice(rows, count))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "folder"])
@pytest.mark.parametrize("buffer", [1, 5, 1000])
def test_every_row_comes_once_a_pass_and_goes_on_from_any_place(
    tmp_path: Path, kind: str, buffer: int
) -> None:
    open_rows = _open(_write(tmp_path, kind))
    rows = _stream(open_rows, 3 * COUNT, buffer=buffer)
    for epoch in range(3):
        part = rows[epoch * COUNT : (epoch + 1) * COUNT]
        assert sorted(one.number for one in part) == list(range(COUNT))
        assert [one.after for one in part] == [Cursor(epoch, k + 1) for k in range(COUNT)]
        in_order = [one.number for one in part] == list(range(COUNT))
        assert in_order == (buffer == 1)
    assert all(one.row == _row(one.number) for one in rows)
    for place in (1, 5, 7, COUNT - 1, COUNT, COUNT + 4):
        assert (
            _stream(open_rows, 20, buffer=buffer, at=rows[place - 1].after)
            == (rows[place : place + 20])
        )


def test_passes_seeds_and_blocks_have_other_orders(tmp_path: Path) -> None:
    open_rows = _open(_write(tmp_path, "jsonl"))
    first, second = (
        [one.number for one in _stream(open_rows, 2 * COUNT)[part]]
        for part in (slice(COUNT), slice(COUNT, None))
    )
    assert first != second != [one.number for one in _stream(open_rows, COUNT, seed=4)]
    assert all(set(first[k : k + 5]) == set(range(COUNT)[k : k + 5]) for k in range(0, COUNT, 5))


def test_names_and_reasons_of_rows_are_those_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n[1]\n')
    rows = _stream(_open(str(path)), 3, buffer=1)
    whole = load(str(path))
    assert [one.source for one in rows] == whole[SOURCE][:]
    assert isinstance(rows[0].row, dict)
    assert [str(one.row) for one in rows[1:]] == whole["_bad"][1:]
    # what only a notebook held is written by `load` with its names and reasons
    whole.to_parquet(tmp_path / "data.parquet")
    again = _stream(_open(str(tmp_path / "data.parquet")), 3, buffer=1)
    assert [(one.source, str(one.row)) for one in again[1:]] == [
        (one.source, str(one.row)) for one in rows[1:]
    ]
    assert all(isinstance(one.row, BadRow) for one in again[1:])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_rows_limits_each_pass(tmp_path: Path, kind: str) -> None:
    rows = _stream(_open(_write(tmp_path, kind), rows=7), 14)
    assert sorted(one.number for one in rows[:7]) == list(range(7))
    assert rows[7].after.epoch == 1


def test_the_zoo_and_an_iterable_dataset_stream_likewise(tmp_path: Path) -> None:
    rows = _stream(_open("zoo/tasks", rows=11), 22)
    assert sorted(one.number for one in rows[11:]) == list(range(11))
    # what the hub gives, from a folder that stands for a hub id
    folder = _write(tmp_path, "folder")
    hub = load_dataset(folder, split="train", streaming=True)
    open_rows = partial(stream._of_hub, hub, "mine", None)
    rows = _stream(open_rows, 2 * COUNT)
    assert sorted(one.number for one in rows[:COUNT]) == list(range(COUNT))
    assert all(one.row == _row(one.number) for one in rows)
    assert _stream(open_rows, 9, at=rows[12].after) == rows[13:22]


def test_first_rows_are_those_of_the_whole_file(tmp_path: Path) -> None:
    name = _write(tmp_path, "jsonl")
    assert first_rows(name, split="test", rows=4, seed=0).to_list() == load(name, rows=4).to_list()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """50,000 rows of 600 bytes: 30 MB, of which a block of 200 rows is held."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(50_000):
            file.write(json.dumps({"text": f"{number} " + "word " * 118}) + "\n")
    assert path.stat().st_size > 29e6
    tracemalloc.start()
    try:
        rows = passes(_open(str(path)), shuffle_buffer=200, seed=[0], at=Cursor(), name="large")
        seen = sum(1 for _ in islice(rows, 50_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 50_000
    assert peak < 2e6


def _empty(folder: Path) -> str:
    (folder / "mine.jsonl").write_text("\n")
    return str(folder / "mine.jsonl")


def _array(folder: Path) -> str:
    (folder / "mine.json").write_text("[{}]")
    return str(folder / "mine.json")


def _missing(folder: Path) -> str:
    (folder / "mine.jsonl").write_text("{}")
    return str(folder / "mime.jsonl")


def _torn(folder: Path) -> str:
    (folder / "mine.parquet").write_text("no")
    return str(folder / "mine.parquet")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_empty, "'mine' holds no row"),
        (_array, "one JSON array.* one object a line"),
        (_missing, "mime.jsonl'. Did you mean 'mine.jsonl'"),
        (_torn, "cannot be read as Parquet"),
    ],
)
def test_data_that_cannot_be_streamed_is_refused(
    tmp_path: Path, make: Callable[[Path], str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        _stream(_open(make(tmp_path)), 1)


def test_unknown_zoo_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'zoo/tasks'"):
        _open("zoo/task")
