"""Streams as token tables: the same rows as read whole, wherever one begins, and what is said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdflow_lab import zoo
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.data.both import tokenize_for_both
from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.row_tokens import RowTokens
from kdflow_lab.data.sources import load
from kdflow_lab.data.stream import Cursor, opener, passes
from kdflow_lab.data.stream_tables import MOST, StreamTables, TokenStream
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import DataError
from kdflow_lab.load import load_tokenizer

START = Cursor()
OPTIONS: dict[str, Any] = {"max_length": 31, "truncation": "drop", "train_turns": "all"}


@pytest.fixture(scope="module")
def ours() -> Any:
    return load_tokenizer(str(zoo.path("zoo/student-unigram")))


@pytest.fixture(scope="module")
def theirs() -> Any:
    return load_tokenizer(str(zoo.path("zoo/teacher")))


@pytest.fixture(scope="module")
def pair(ours: Any, theirs: Any) -> TokenizerPair:
    return TokenizerPair.of(theirs, ours)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tasks, every 7th with a malformed row behind it, and some too long for `max_length`."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    lines = []
    for number, row in enumerate(zoo.dataset("zoo/tasks", rows=60).to_list()):
        hint = f"Think of {number}."
        lines.append(json.dumps({"messages": row["messages"], "hint": hint}))
        if number % 7 == 6:
            lines.append('{"messages": ')
    path.write_text("\n".join(lines))
    return str(path)


def _stream(
    name: str, tokens: RowTokens, *, at: Cursor = START, skip: bool = True, buffer: int = 10
) -> TokenStream:
    open_rows = opener(name, split="train", rows=None, seed=0)
    rows = passes(open_rows, shuffle_buffer=buffer, seed=[1], at=at, name=name)
    how = "skip" if skip else "raise"
    return TokenStream(rows, tokens, name=name, on_bad_rows=how, at=at)


def _rows(tables: list[TokenTable]) -> list[tuple[Any, ...]]:
    """All that a row is, the teacher's side and places included."""
    found = []
    for table in tables:
        for number in range(len(table)):
            one = table.take(np.array([number]))
            found.append(tuple((name, array.tolist()) for name, array in one.arrays().items()))
    return found


@pytest.mark.parametrize("crosses", [False, True], ids=["one tokenizer", "two tokenizers"])
@pytest.mark.parametrize("teacher_input", [None, "hint"])
def test_a_pass_has_the_rows_of_the_whole_file(
    file: str, ours: Any, theirs: Any, pair: TokenizerPair, crosses: bool, teacher_input: str | None
) -> None:
    student = ours if crosses else theirs
    both: dict[str, Any] = {"pair": pair if crosses else None, "teacher_input": teacher_input}
    whole, report = tokenize_for_both(
        load(file), student, theirs, on_bad_rows="skip", **both, **OPTIONS
    )
    assert report.dropped > 0 and report.skipped == 8
    stream = _stream(file, RowTokens(student, theirs, **both, **OPTIONS))
    tables, cursors = stream.take(2 * report.kept)
    rows = _rows(tables)
    expected = sorted(_rows([whole]), key=str)
    assert sorted(rows[: report.kept], key=str) == expected
    assert sorted(rows[report.kept :], key=str) == expected
    assert rows[: report.kept] != rows[report.kept :]
    warning, ended = stream.notes
    assert "is left out: not JSON" in warning["fields"]["message"]
    said = ended["fields"]
    assert (said["kept"], said["dropped"], said["skipped"]) == (
        report.kept,
        report.dropped,
        report.skipped,
    )
    for place in (1, 13, report.kept, report.kept + 9):  # goes on behind any row
        again = _stream(file, RowTokens(student, theirs, **both, **OPTIONS), at=cursors[place - 1])
        assert _rows(again.take(25)[0]) == rows[place : place + 25]


def test_how_many_are_taken_at_once_does_not_matter(file: str, theirs: Any) -> None:
    tokens = RowTokens(theirs, theirs, **OPTIONS)
    one, many = _stream(file, tokens), _stream(file, tokens)
    in_parts = [one.take(count) for count in (3, 0, 50, 1, 200)]
    tables, cursors = many.take(254)
    assert _rows([table for part, _ in in_parts for table in part]) == _rows(tables)
    assert [cursor for _, part in in_parts for cursor in part] == cursors


def test_each_row_says_its_form_and_none_depends_on_its_neighbours(
    tmp_path: Path, theirs: Any
) -> None:
    answer = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [
        {"text": "just words", "prompt": None},
        {"messages": answer},
        {"prompt": "Hi", "response": "Ho", "completion": None},
        {"txt": "no"},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    stream = _stream(str(path), RowTokens(theirs, theirs, **OPTIONS), buffer=1)
    table, next_pass = stream.take(4)[0]
    assert table.row_index.tolist() == [0, 1, 2] and next_pass.row_index.tolist() == [0]
    assert table.row(1)[0].tolist() == table.row(2)[0].tolist()
    assert theirs.decode(table.row(0)[0], skip_special_tokens=True).strip() == "just words"
    assert "mixed.jsonl:4 is left out: No column" in stream.notes[0]["fields"]["message"]


def test_a_bad_row_ends_the_run_unless_it_is_to_be_skipped(file: str, theirs: Any) -> None:
    stream = _stream(file, RowTokens(theirs, theirs, **OPTIONS), skip=False)
    with pytest.raises(DataError, match=r"mine.jsonl:8: not JSON.*(?s:.)*on_bad_rows=\"skip\""):
        stream.take(40)


def test_a_missing_teacher_column_is_named_with_the_nearest(file: str, theirs: Any) -> None:
    tokens = RowTokens(theirs, theirs, teacher_input="hnt", **OPTIONS)
    with pytest.raises(DataError, match=r"no column 'hnt' \(teacher_input\). Did you mean 'hint'"):
        _stream(file, tokens, skip=False).take(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"messages": ', r"No row is left of the 1 of .*mine.jsonl: 0 have more.*; 1 are bad"),
        (json.dumps({"text": "long " * 200}), "1 have more than max_length tokens"),
    ],
)
def test_a_pass_without_a_row_to_learn_from_ends_the_run(
    tmp_path: Path, theirs: Any, text: str, words: str
) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        _stream(str(tmp_path / "mine.jsonl"), RowTokens(theirs, theirs, **OPTIONS)).take(1)


# -- several --------------------------------------------------------------------------------------


def _mixed(tmp_path: Path, theirs: Any, at: tuple[Cursor, ...] = (START, START)) -> StreamTables:
    tokens = RowTokens(theirs, theirs, **{**OPTIONS, "max_length": 100})
    streams = []
    for name, count, place in zip(("large", "small"), (40, 6), at, strict=True):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"text": f"{name} {k}"}) for k in range(count)))
        streams.append(_stream(str(path), tokens, at=place))
    return StreamTables(streams, Mixture([3, 1]), at=at)


def test_streams_are_mixed_by_their_weights_and_go_on_from_any_step(
    tmp_path: Path, theirs: Any
) -> None:
    mixed = _mixed(tmp_path, theirs)
    chunks = [mixed.chunk(first, 3, 8) for first in (0, 3, 6)]
    table = [row for chunk in chunks for row in _rows([chunk.table])]
    assert [len(chunk.table) for chunk in chunks] == [24] * 3
    for chunk in chunks:
        assert chunk.table.source is not None
        batches = chunk.table.source.reshape(3, 8)
        assert (batches.sum(axis=1) == 2).all()
    states = {step: places for chunk in chunks for step, places in chunk.states.items()}
    assert sorted(states) == list(range(10))
    small = [
        (int(row), cursor)
        for chunk in chunks
        for row, cursor in zip(chunk.table.row_index, chunk.table.source, strict=True)  # type: ignore[arg-type]
        if cursor == 1
    ]
    assert sorted(row for row, _ in small[:6]) == list(range(6))
    for step in (1, 3, 5, 8):
        again = _mixed(tmp_path, theirs, at=states[step])
        assert _rows([again.chunk(step, 1, 8).table]) == table[8 * step : 8 * step + 8]
    said = [note["fields"]["message"] for chunk in chunks for note in chunk.notes]
    assert len(said) == 2 and all("starts over" in text for text in said)


def test_rows_that_wait_are_bounded(tmp_path: Path, theirs: Any) -> None:
    mixed = _mixed(tmp_path, theirs)
    held = []
    for first in itertools.islice(itertools.count(0, 8), 40):
        mixed.chunk(first, 8, 32)
        held.append(mixed.rows_held)
    assert max(held) <= 2 * MOST
    assert max(held[20:]) <= max(held[:20])
