"""Rows from everywhere, and errors that name file, line and reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import huggingface_hub.constants
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from kdflow_lab.data.rows import BAD, SOURCE
from kdflow_lab.data.sources import load
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.errors import ConfigError, DataError


def _chat(question="Hi", answer="Ho"):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _write(path, lines):
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return path


ROWS = [_chat(f"Q{i}", f"A{i}") for i in range(4)]


def _dataset():
    return Dataset.from_list(ROWS)


def test_importing_loads_nothing_heavy():
    code = "import sys, kdflow_lab.data.sources; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "datasets", "transformers", "pyarrow"} & set(loaded.stdout.split())


def test_the_zoo_makes_as_many_rows_as_asked():
    assert len(load("zoo/tasks", split="test", rows=7, seed=1)) == 7
    with pytest.raises(ConfigError, match="Did you mean 'zoo/tasks'"):
        load("zoo/task")


@pytest.mark.parametrize("kind", ["jsonl", "json", "json array", "parquet"])
def test_files_give_the_same_rows(tmp_path, kind):
    path = tmp_path / f"mine.{kind.split()[0]}"
    if kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "json array":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        _write(path, [*ROWS, b"", b"  "])
    for name in (str(path), path):
        rows = load(name, split="test")  # a single file has no splits
        assert rows["messages"][:] == [row["messages"] for row in ROWS]
        assert len(load(name, rows=2)) == 2
        assert len(load(name, rows=99)) == 4
    third = {"jsonl": "mine.jsonl:3", "json": "mine.json:3"}.get(kind, f"{path.name} row 2")
    assert load(str(path))[SOURCE][2] == third


def test_csv_keeps_texts_and_counts_lines(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('prompt,response\n"two\nlines",42\n1+1?,\nx,y,z\n"a, b",c\n')
    rows = load(str(path))
    assert rows["prompt"][:] == ["two\nlines", "1+1?", None, "a, b"]
    assert rows["response"][:] == ["42", "", None, "c"]
    assert rows[SOURCE][:] == ["mine.csv:2", "mine.csv:4", "mine.csv:5", "mine.csv:6"]
    assert rows[BAD][2] == "it has 3 fields, but the header has 2"
    path.write_bytes(b"text\nok\n\xff\n")
    with pytest.raises(DataError, match=r"mine\.csv.*Expected CSV in UTF-8"):
        load(str(path))


def test_objects_of_a_notebook():
    for data in (
        ROWS,
        Dataset.from_list(ROWS),
        pd.DataFrame(ROWS),
        DatasetDict({"train": _dataset()}),
    ):
        rows = load(data, rows=3)
        assert rows["messages"][:] == [row["messages"] for row in ROWS[:3]]
    frame = pd.DataFrame({"prompt": ["a", 3], "response": ["b", "c"]})
    assert load(frame)[BAD][:] == [None, "prompt is int; expected a text or a list of messages"]
    with pytest.raises(DataError, match=r"no split 'tran'. Did you mean 'train'\? It has: train\."):
        load(DatasetDict({"train": _dataset()}), split="tran")
    with pytest.raises(
        DataError, match=r"Cannot load data from generator.*Expected a name or a path"
    ):
        load(row for row in ROWS)


def test_folders_have_a_file_for_each_split(tmp_path):
    _write(tmp_path / "train-0-of-2.jsonl", ROWS[:3])
    _write(tmp_path / "train-1-of-2.jsonl", ROWS[3:])
    Dataset.from_list(ROWS[:2]).to_parquet(tmp_path / "test.parquet")
    rows = load(str(tmp_path))
    assert (len(rows), rows[SOURCE][3]) == (4, "train-1-of-2.jsonl:1")
    assert len(load(str(tmp_path), split="test")) == 2
    with pytest.raises(
        DataError, match=r"no split 'tests': it has test, train\. Did you mean 'test'"
    ):
        load(str(tmp_path), split="tests")
    _write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(DataError, match=r"test\.jsonl, test\.parquet .*different kinds"):
        load(str(tmp_path), split="test")


def test_folders_of_save_to_disk(tmp_path):
    _dataset().save_to_disk(tmp_path / "one")
    DatasetDict({"train": _dataset(), "test": _dataset().select([0])}).save_to_disk(
        tmp_path / "dict"
    )
    assert len(load(str(tmp_path / "one"))) == 4
    assert len(load(str(tmp_path / "dict"), split="test")) == 1
    with pytest.raises(DataError, match=r"no split 'tst'\. Did you mean 'test'"):
        load(str(tmp_path / "dict"), split="tst")


BAD_LINES = [
    (b'{"messages": [', "not JSON: Expecting value at column 15"),
    (b"[1, 2]", "it is list; expected an object"),
    (b'{"messages": "\xff"}', "not UTF-8: byte 0xff at position 14"),
    (b'{"messages": "\\ud800"}', "half of a surrogate pair"),
    ({"messages": "Hi"}, "messages is str; expected a list of messages"),
    ({"messages": []}, "messages is empty"),
    ({"messages": [7]}, "messages[0] is int; expected {role, content}"),
    ({"kind": "x"}, "messages is null; expected a list of messages"),
    ({"messages": [{"content": "Hi"}]}, "messages[0] has no role"),
    ({"messages": [{"role": "usr", "content": "Hi"}]}, "Did you mean 'user'?"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is null"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content is int"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "there is no assistant turn"),
    (_chat(answer=" \n"), "the assistant's answer is empty (messages[1].content)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_each_kind_of_bad_line_is_named_and_can_be_skipped(tmp_path, zoo, line, reason):
    path = _write(tmp_path / "mine.jsonl", [ROWS[0], b"", line, ROWS[1]])
    with pytest.raises(DataError) as error:
        tokenize(load(str(path)), zoo, max_length=99)
    assert "1 of 3 rows cannot be used:\n  mine.jsonl:3: " in str(error.value)
    assert reason in str(error.value)
    assert 'on_bad_rows="skip"' in str(error.value)
    table, report = tokenize(load(str(path)), zoo, max_length=99, on_bad_rows="skip")
    assert (report.rows, report.kept, report.skipped) == (3, 2, 1)
    assert report.bad_rows[0][0] == "mine.jsonl:3"
    assert table.row_index.tolist() == [0, 2]


def test_many_bad_lines_are_counted_and_the_first_listed(tmp_path, zoo):
    lines = [line for line, _ in BAD_LINES]
    path = _write(tmp_path / "mine.jsonl", [*lines, ROWS[0]])
    with pytest.raises(DataError) as error:
        tokenize(load(str(path)), zoo, max_length=99)
    message = str(error.value)
    assert message.startswith("14 of 15 rows cannot be used:")
    assert re.findall(r"mine\.jsonl:(\d+):", message) == ["1", "2", "3", "4", "5"]
    assert "and 9 more" in message
    only_bad = _write(tmp_path / "bad.jsonl", [b"{", b"}"])
    with pytest.raises(DataError, match=r"2 of 2 rows .*\n  bad.jsonl:1: not JSON"):
        tokenize(load(str(only_bad)), zoo, max_length=99)
    with pytest.raises(
        DataError, match=r"No row is left of 2: .*2 are bad, the first \(bad.jsonl:1\)"
    ):
        tokenize(load(str(only_bad)), zoo, max_length=99, on_bad_rows="skip")


def test_rows_of_a_notebook_reach_the_engines_with_their_reasons(tmp_path, zoo):
    """As Lab does it: load, write Parquet, load that."""
    file = str(tmp_path / "data.parquet")
    load([ROWS[0], {"messages": 3}, "text", {**ROWS[1], "answers": ["A1"]}]).to_parquet(file)
    table, report = tokenize(load(file), zoo, max_length=99, on_bad_rows="skip")
    assert table.row_index.tolist() == [0, 3]
    assert report.bad_rows == [
        ("row 1", "messages is int; expected a list of messages"),
        ("row 2", "it is str; expected an object"),
    ]
    assert load(file)["answers"][:] == [None, None, None, ["A1"]]


def test_a_column_of_mixed_types_names_both_rows(tmp_path):
    rows = [_chat(), {**_chat(), "answers": ["A"]}, {**_chat(), "answers": "A"}]
    path = _write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(
        DataError, match=r"'answers' mixes types: str in mine.jsonl:3, list in mine.jso"
    ):
        load(str(path))


def test_missing_and_unreadable_data_offer_what_is_near(tmp_path, monkeypatch):
    _write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(
        DataError, match=r"no file or folder .*trian.jsonl'. Did you mean 'train.jsonl'"
    ):
        load(str(tmp_path / "trian.jsonl"))
    (tmp_path / "notes.jsnl").write_text("{}")
    with pytest.raises(DataError, match=r"Cannot read .*notes\.jsnl\. Did you mean '\.jsonl'"):
        load(str(tmp_path / "notes.jsnl"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet"):
        load(str(tmp_path / "x.parquet"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl' holds no row"):
        load(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="rows is 0"):
        load(ROWS, rows=0)
    monkeypatch.chdir(tmp_path)
    assert len(load("train.jsonl")) == 4


def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as error:
        load("nobody/no-such-data")
    assert str(error.value).startswith("There is no file or folder 'nobody/no-such-data'.")
    assert "The hub cannot give split 'train'" in str(error.value)
    assert "\n" not in str(error.value)
