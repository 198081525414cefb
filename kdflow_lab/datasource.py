"""What a run's `data` may be: one data set, or several with weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import pydantic
from pydantic import Field

from kdflow_lab.errors import ConfigError
from kdflow_lab.strict import StrictModel

ROW_COLUMNS = ("messages", "prompt", "text")
"""Columns of rows: what has one is a row and no description of a data set."""
FORMS = (
    "Expected one data set (a name, a path, rows, a datasets.Dataset), a list of them, a mapping "
    "{name: weight}, or a list of {data: …, weight: …, split: …, rows: …, teacher_input: …}."
)


class DataSource(StrictModel):
    """One of several data sets of a run."""

    data: Any
    """A name, a path, rows or a `datasets.Dataset`, as for a run with one."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the run's rows that come from here, up to a common factor: 3 and 1 are three
    quarters and one. In all sources or in none; without, the sources are joined."""
    split: str | None = None
    """By default the run's."""
    rows: int | None = Field(default=None, ge=1)
    """Use only this many rows; by default the run's."""
    teacher_input: str | None = None
    """Column with the teacher's own prompt; by default the run's."""

    @pydantic.field_validator("data")
    @classmethod
    def _one(cls, data: Any) -> Any:
        found = one_or_several(data)
        if is_several(found):
            raise ConfigError("Data sets do not nest: list all of them side by side.")
        return found

    @property
    def name(self) -> str:
        """What it is called in events and errors."""
        return self.data if isinstance(self.data, str) else f"the {type(self.data).__name__}"


def is_several(data: Any) -> bool:
    """Tell whether this is what `one_or_several` makes of several data sets."""
    return isinstance(data, list) and any(isinstance(one, DataSource) for one in data[:1])  # pyright: ignore[reportUnknownVariableType]


def one_or_several(data: Any) -> Any:
    """Tell one data set from several.

    Args:
        data: One data set (a name, a path, rows, a `Dataset`, a DataFrame); or a list of them; or a
            mapping of names to weights; or one or several mappings with the fields of `DataSource`.
            A text in brackets is read as YAML of these, for a command line.

    Returns:
        The data set as it is, a path as a text; or a list of `DataSource`.

    Raises:
        ConfigError: None of these, an unknown field, a weight that is none, or a stream, which
            cannot go to another process.
    """
    if isinstance(data, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", data))
    if isinstance(data, str):
        return one_or_several(_yaml(data)) if (data[:1], data[-1:]) in _BRACKETS else data
    _refuse_streams(data)
    if isinstance(data, dict) and not _is_of_datasets(data):
        return _weighed(_of_mapping(cast("dict[Any, Any]", data)))
    if isinstance(data, list | tuple):
        items = cast("Sequence[Any]", data)
        if items and not _is_row(items[0]):
            return _weighed([_source(item) for item in items])
    return data


_BRACKETS = (("[", "]"), ("{", "}"))


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"data={text!r} is neither a name nor YAML. {FORMS}") from None


def _is_of_datasets(data: Any) -> bool:
    """Whether the library `datasets` made it; it is not imported to find out."""
    return type(data).__module__.partition(".")[0] == "datasets"


def _refuse_streams(data: Any) -> None:
    is_stream = _is_of_datasets(data) and type(data).__name__.startswith("Iterable")
    if is_stream or hasattr(data, "__next__"):
        raise ConfigError(
            f"A {type(data).__name__} lives in this process, and a run reads its data in another. "
            "Pass the path or the hub id with streaming=True, or a part of it: "
            "data=list(stream.take(1000))."
        )


def _is_row(item: Any) -> bool:
    """Whether an item of a list is a row, right or wrong, and no data set."""
    if not isinstance(item, dict) or _is_of_datasets(item):
        return item is None or isinstance(item, bool | int | float)
    row = cast("dict[Any, Any]", item)
    described = "data" in row or "weight" in row
    return not described or any(name in row for name in ROW_COLUMNS)


def _of_mapping(data: dict[Any, Any]) -> list[DataSource]:
    if "data" in data:
        return [_source(data)]
    if any(name in data for name in ROW_COLUMNS):
        raise ConfigError("data is one row. Put rows into a list, also a single one.")
    wrong = [name for name, weight in data.items() if not _is_number(weight)]
    if wrong or not data:
        found = f"{wrong[0]!r} has {data[wrong[0]]!r}" if wrong else "it is empty"
        raise ConfigError(f"data is a mapping, but no names with weights: {found}. {FORMS}")
    return [DataSource.parse(data=name, weight=weight) for name, weight in data.items()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _source(item: Any) -> DataSource:
    if isinstance(item, DataSource):
        return item
    if isinstance(item, dict) and not _is_of_datasets(item):
        fields = {str(name): value for name, value in cast("dict[Any, Any]", item).items()}
        if "data" not in fields:
            raise ConfigError(
                f"A data set of the list has no 'data', only {sorted(fields)}. {FORMS}"
            )
        return DataSource.parse(**fields)
    return DataSource.parse(data=item)


def _weighed(sources: list[DataSource]) -> list[DataSource]:
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        raise ConfigError(
            f"Some of the data sets have a weight, but {without[0]!r} has none. Give all of them "
            "one, or none."
        )
    return sources
