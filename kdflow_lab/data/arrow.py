"""From rows of Python objects to a `datasets.Dataset` that knows where each row came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kdflow_lab.data.rows import BAD, SOURCE, TEXT_COLUMNS, BadRow, Form, form_of, kind, parse
from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from kdflow_lab.data.readers import SourcedRow


def dataset_of(table: pa.Table) -> Dataset:
    """Wrap an Arrow table, with the features that its metadata names, if any."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table))


def build(rows: Iterable[SourcedRow]) -> Dataset:
    """Return the rows as a data set with a column `_source`.

    A row that could not be read stays as one of nulls, with its reason in the column `_bad`:
    `tokenize` is the one place that raises or skips.

    Raises:
        DataError: A column mixes types that Arrow cannot hold together, and the rows that are
            wrong cannot be told apart.
    """
    import pyarrow as pa

    sources, contents = [], []
    reasons: list[str | None] = []
    for source, row in rows:
        sources.append(source)
        contents.append({} if isinstance(row, BadRow) else row)
        reasons.append(str(row) if isinstance(row, BadRow) else None)
    names = list(dict.fromkeys(str(name) for row in contents for name in row))
    names = [name for name in names if name not in (SOURCE, BAD)]
    columns = {}
    for name in names:
        column, _ = _array([row.get(name) for row in contents])
        if column is None and name in TEXT_COLUMNS:
            # One row with a number for a text: find it by what a row must look like.
            _blank_bad_rows(contents, reasons, form_of(names, need_response=False))
            column, _ = _array([row.get(name) for row in contents])
        if column is None:
            raise _mixed(name, [row.get(name) for row in contents], sources)
        columns[name] = column
    columns[SOURCE] = pa.array(sources, pa.string())
    if any(reason is not None for reason in reasons):
        # Columns made before a bad row was found still hold its values; `_bad` tells them apart.
        columns[BAD] = pa.array(reasons, pa.string())
    return dataset_of(pa.table(columns))


def _blank_bad_rows(contents: list[dict[str, Any]], reasons: list[str | None], form: Form) -> None:
    """Empty the rows that cannot be parsed, and note why."""
    for place, row in enumerate(contents):
        if reasons[place] is None:
            try:
                parse(row, form)
            except BadRow as problem:
                reasons[place] = str(problem)
                contents[place] = {}


def _array(values: Sequence[Any]) -> tuple[pa.Array | None, str]:
    """Make an Arrow array, or say why there is none."""
    import pyarrow as pa

    try:
        return pa.array(values), ""
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        return None, str(error)


def _mixed(name: str, values: list[Any], sources: list[str]) -> DataError:
    """Name the first row whose value does not go with the ones before it."""
    good, bad = 0, len(values)  # so many rows from the start do, and do not, make an array
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _array(values[:middle])[0] is not None else (good, middle)
    reason = _array(values[:bad])[1].splitlines()[0]
    before = next((place for place in range(good) if values[place] is not None), None)
    other = "" if before is None else f", {kind(values[before])} in {sources[before]}"
    return DataError(
        f"Column {name!r} mixes types: {kind(values[good])} in {sources[good]}{other} ({reason}). "
        "Expected one type in all rows. Make the values alike, or remove the column."
    )
