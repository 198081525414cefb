"""Rows that are read as they are needed, pass behind pass, shuffled in blocks.

The order is a function of the seed, the pass and the place in it: a block of `shuffle_buffer` rows
is permuted as a whole. So a stream goes on from any place without having read what came before it
as rows: lines are passed over unread. A reservoir, as `IterableDataset.shuffle` has one, mixes a
little further, but its state is all that it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdflow_lab.data import sources
from kdflow_lab.data.readers import is_json_array, json_row, jsonl_lines, read_csv, row_or_reason
from kdflow_lab.data.rows import BAD, SOURCE, BadRow
from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_ROWS = 256
"""Rows of a Parquet file that are decoded at once."""

Unread = tuple[str, Callable[[], Any]]
"""Where a row is, and what reads it."""
OpenRows = Callable[[int], Iterator[Unread]]
"""Gives the rows from the one with this number on."""


class Cursor(NamedTuple):
    """A place in an endless stream.

    Attributes:
        epoch: Passes that are complete.
        place: Rows of this pass before it, in the order in which they are given.
    """

    epoch: int = 0
    place: int = 0


class StreamRow(NamedTuple):
    """One row of a stream.

    Attributes:
        after: The place behind it.
        number: Of the row in the data, counted from 0.
        source: Where it is (`train.jsonl:7`).
        row: Its columns, or why there is none.
    """

    after: Cursor
    number: int
    source: str
    row: dict[str, Any] | BadRow


def passes(
    open_rows: OpenRows, *, shuffle_buffer: int, seed: list[int], at: Cursor, name: str
) -> Iterator[StreamRow]:
    """Yield rows without end, each pass in another order.

    Args:
        open_rows: Of one pass.
        shuffle_buffer: Rows that are held and shuffled together; 1 keeps their order.
        seed: Any numbers of 0 or more.
        at: Where to begin.
        name: Of the data, for the error.

    Raises:
        DataError: There is no row at all.
    """
    epoch, place = at
    while True:
        block = place // shuffle_buffer
        rows = open_rows(block * shuffle_buffer)
        found = 0
        while held := list(islice(rows, shuffle_buffer)):
            first = block * shuffle_buffer
            order = range(len(held))
            if shuffle_buffer > 1:
                draw = np.random.default_rng([*seed, epoch, block])
                order = draw.permutation(len(held)).tolist()
            for index in order[place - first :]:
                source, read = held[index]
                place += 1
                yield _row(Cursor(epoch, place), first + index, source, read())
            found += len(held)
            block += 1
        if not found and not place:
            raise DataError(f"{name!r} holds no row. Expected at least one.")
        epoch, place = epoch + 1, 0


def _row(after: Cursor, number: int, source: str, row: Any) -> StreamRow:
    """Take out what `sources.load` put into a row that was written to a file."""
    row = row if isinstance(row, BadRow) else row_or_reason(row)
    if isinstance(row, dict):
        source = row.pop(SOURCE, None) or source
        reason = row.pop(BAD, None)
        row = BadRow(reason) if reason is not None else row
    return StreamRow(after, number, source, row)


def opener(data: str, *, split: str, rows: int | None, seed: int) -> OpenRows:
    """Find data with a name, and return what opens its rows.

    Args:
        data: As in `sources.load`; a text.
        split: Likewise.
        rows: Only the first so many of each pass; None for all.
        seed: Draws the rows of `zoo/tasks`, which are made, and held, at once.

    Raises:
        DataError: There is no such data, or it can only be read whole.
    """
    if data.startswith("zoo/"):
        found: Any = sources.load(data, split=split, rows=rows, seed=seed)
    else:
        found = sources.locate(data, split)
    if found is None:
        return partial(_of_hub, _hub_stream(data, split), Path(data).name, rows)
    if isinstance(found, list):
        suffix = found[0].suffix
        arrays = [path for path in found if suffix == ".json" and is_json_array(path)]
        if arrays:
            raise DataError(
                f"{arrays[0]} is one JSON array, which can only be read whole. Write one object a "
                "line (JSONL), or leave streaming out."
            )
        read = STREAMS[suffix]
        return lambda start: islice(chain.from_iterable(map(read, found)), start, rows)
    return partial(_of_dataset, found, Path(data).name, rows)


def first_rows(data: str, *, split: str, rows: int, seed: int) -> Dataset:
    """Return the first rows of data with a name without reading the others.

    Raises:
        DataError: As `opener`; or there is no row.
    """
    from kdflow_lab.data.arrow import build

    opened = opener(data, split=split, rows=rows, seed=seed)(0)
    found = [_row(Cursor(), 0, source, read()) for source, read in opened]
    if not found:
        raise DataError(f"{data!r} holds no row in split {split!r}. Expected at least one.")
    return build((one.source, one.row) for one in found)


def _jsonl(path: Path) -> Iterator[Unread]:
    return ((source, partial(json_row, line)) for source, line in jsonl_lines(path))


def _csv(path: Path) -> Iterator[Unread]:
    return ((source, partial(_same, row)) for source, row in read_csv(path))


def _parquet(path: Path) -> Iterator[Unread]:
    """Decode a few rows at a time; what is passed over becomes no Python object."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS):
                for index in range(batch.num_rows):
                    yield f"{path.name} row {number}", partial(_arrow_row, batch, index)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]} Write it again, or "
            "check its ending."
        ) from None


def _arrow_row(batch: Any, index: int) -> dict[str, Any]:
    return batch.slice(index, 1).to_pylist()[0]


def _same(row: Any) -> Any:
    return row


STREAMS: dict[str, Callable[[Path], Iterator[Unread]]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""By the ending of a file."""


def _of_dataset(dataset: Dataset, name: str, rows: int | None, start: int) -> Iterator[Unread]:
    """Rows of a data set that is mapped into memory, or small."""
    plain = dataset.with_format(None)
    stop = len(plain) if rows is None else min(rows, len(plain))
    for number in range(start, stop):
        yield f"{name} row {number}", partial(plain.__getitem__, number)


def _hub_stream(name: str, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    return sources.from_hub(name, split, lambda: load_dataset(name, split=split, streaming=True))


def _of_hub(stream: Any, name: str, rows: int | None, start: int) -> Iterator[Unread]:
    """Rows of a `datasets.IterableDataset`."""
    found = stream.skip(start) if start else stream
    left = None if rows is None else max(0, rows - start)
    for number, row in enumerate(islice(found, left), start):
        yield f"{name} row {number}", partial(_same, row)
