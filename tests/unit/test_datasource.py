"""One data set or several: what is taken for what, and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from kdflow_lab.commandline import parse
from kdflow_lab.commands import find
from kdflow_lab.config import DistillConfig
from kdflow_lab.datasource import DataSource
from kdflow_lab.errors import ConfigError
from kdflow_lab.expand import split, yaml_body

ROWS = [{"prompt": "a", "completion": "b"}]


def _config(data: Any, **options: Any) -> DistillConfig:
    return DistillConfig.parse(data=data, **options)


@pytest.mark.parametrize(
    "data",
    ["zoo/tasks", ROWS, [], Dataset.from_list(ROWS), pd.DataFrame(ROWS)],
    ids=lambda data: type(data).__name__,
)
def test_one_data_set_stays_as_it_is(data: Any) -> None:
    config = _config(data)
    assert config.data is data or config.data == data
    assert len(config.sources) == 1 and config.weights is None
    assert config.sources[0].split == "train"


def test_a_dataset_dict_is_one_data_set() -> None:
    data = DatasetDict({"train": Dataset.from_list(ROWS)})
    assert _config(data).sources[0].data is data


def test_a_path_becomes_a_text() -> None:
    assert _config(Path("a.jsonl")).data == "a.jsonl"


@pytest.mark.parametrize(
    ("data", "names", "weights"),
    [
        (["a.jsonl", Path("b.jsonl")], ["a.jsonl", "b.jsonl"], None),
        ({"a.jsonl": 3, "zoo/tasks": 1}, ["a.jsonl", "zoo/tasks"], [3.0, 1.0]),
        ([{"data": "a", "weight": 2}, {"data": "b", "weight": 0.5}], ["a", "b"], [2.0, 0.5]),
        ({"data": "a", "rows": 5}, ["a"], None),
        ("[a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"], None),
        ("{a.jsonl: 3, b.jsonl: 1}", ["a.jsonl", "b.jsonl"], [3.0, 1.0]),
        ([ROWS, "b"], ["the list", "b"], None),
        ([Dataset.from_list(ROWS), "b"], ["the Dataset", "b"], None),
        ([DataSource(data="a"), "b"], ["a", "b"], None),
    ],
)
def test_several_are_told_from_one(data: Any, names: list[str], weights: Any) -> None:
    config = _config(data)
    assert [source.name for source in config.sources] == names
    assert config.weights == weights


def test_what_a_source_does_not_say_the_run_says() -> None:
    data = [{"data": "a", "rows": 5, "teacher_input": "hint"}, {"data": "b", "split": "test"}]
    first, second = _config(data, rows=9, split="all").sources
    assert (first.rows, first.split, first.teacher_input) == (5, "all", "hint")
    assert (second.rows, second.split, second.teacher_input) == (9, "test", None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"data": "a", "wieght": 1}], "Unknown option 'wieght'. Did you mean 'weight'"),
        ({"a": 0, "b": 1}, "Option 'weight' = 0 cannot be used"),
        ([{"data": "a", "weight": 1}, "b"], "'b' has none. Give all of them one, or none"),
        ([{"dat": "a", "weight": 1}], "A data set of the list has no 'data', only"),
        ({"a": "much"}, "no names with weights: 'a' has 'much'"),
        ({"a": True}, "no names with weights: 'a' has True"),
        ({}, "it is empty"),
        (ROWS[0], "data is one row. Put rows into a list"),
        ([["a", "b"], "c"], "Data sets do not nest"),
        ("{a: 1, b}}", "neither a name nor YAML"),
        (iter(ROWS), "lives in this process.*list\\(stream.take\\(1000\\)\\)"),
        (Dataset.from_list(ROWS).to_iterable_dataset(), "A IterableDataset lives|IterableDataset"),
    ],
)
def test_mistakes_are_said_in_words(data: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _config(data)
    assert "pydantic" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_mistake_does_not_print_the_rows() -> None:
    with pytest.raises(ConfigError) as caught:
        _config([{"data": ROWS * 1000, "weight": -1}])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "a"}, "a stream has no length.*give steps|A stream has no length"),
        ({"data": "a", "epochs": 2}, "A stream has no length"),
        ({"data": "a", "steps": 3, "on_policy": True}, "reads its prompts whole"),
        ({"data": ["a", "b"], "steps": 3}, "give each a weight"),
    ],
)
def test_a_stream_needs_steps_and_weights(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DistillConfig.parse(streaming=True, **options)


@pytest.mark.parametrize(
    ("line", "weights"),
    [
        ("distill data={a.jsonl: 3, zoo/tasks: 1}", [3.0, 1.0]),
        ("distill --data '[a.jsonl, zoo/tasks]'", None),
        ("distill data=[a.jsonl,zoo/tasks]", None),
        ("distill data=$both", [3.0, 1.0]),
    ],
)
def test_several_from_a_line(line: str, weights: Any) -> None:
    words, values = split(line, {"both": {"a.jsonl": 3, "zoo/tasks": 1}})
    given = parse(find(words[0], "%kdflow"), words[1:], values=values)
    config = DistillConfig.parse(**given)
    assert [source.name for source in config.sources] == ["a.jsonl", "zoo/tasks"]
    assert config.weights == weights


def test_several_from_a_cell() -> None:
    body = "data:\n  - {data: a.jsonl, weight: 3, rows: 10}\n  - {data: $rows, weight: 1}\n"
    config = DistillConfig.parse(**yaml_body(body, {"rows": ROWS}))
    assert [source.data for source in config.sources] == ["a.jsonl", ROWS]
    assert config.weights == [3.0, 1.0] and config.sources[0].rows == 10
