"""Streams of rows as token tables: of each data set in its order, then mixed by weights."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np

from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.row_tokens import Handful
from kdflow_lab.data.rows import bad_rows_error
from kdflow_lab.data.stream import Cursor, StreamRow
from kdflow_lab.data.table import TokenTable, join, of_source
from kdflow_lab.data.tokens import LISTED_IN_REPORT
from kdflow_lab.errors import DataError

MOST = 1024
"""Rows that are tokenized at once, at most."""

Note = dict[str, Any]
"""An event: its name as `event`, and its `fields`."""
Places = tuple[Cursor, ...]
"""Where each data set goes on."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows of some steps.

    Attributes:
        table: `batch_size` rows a step, in the order in which they are learnt.
        states: By step, the one behind the last included: where the streams go on from there.
        notes: What is to be said.
    """

    table: TokenTable
    states: dict[int, Places]
    notes: list[Note]


@dataclasses.dataclass
class _Counts:
    """What one pass came to."""

    rows: int = 0
    kept: int = 0
    dropped: int = 0
    cut: int = 0
    skipped: int = 0
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return plain JSON values, named as in `tokens.Report`."""
        said = dataclasses.asdict(self)
        bad = said.pop("bad")
        said["bad_rows"] = [{"source": source, "reason": reason} for source, reason in bad]
        return said


class TokenStream:
    """The rows of one data set that can be learnt from, without end."""

    def __init__(
        self,
        rows: Iterator[StreamRow],
        tokens: Callable[[Sequence[StreamRow]], Handful],
        *,
        name: str,
        on_bad_rows: str,
        at: Cursor,
    ) -> None:
        """Take the rows from `at` on; nothing is read before `take`."""
        self._rows, self._tokens = rows, tokens
        self._name, self._skips = name, on_bad_rows == "skip"
        self._at = at
        self._counts = _Counts()
        self._is_whole_pass = at.place == 0
        self._held: deque[tuple[TokenTable, list[Cursor]]] = deque()
        self.notes: list[Note] = []
        """What is to be said; whoever says it empties the list."""

    @property
    def rows_held(self) -> int:
        """Tokenized rows that wait."""
        return sum(len(table) for table, _ in self._held)

    def take(self, count: int) -> tuple[list[TokenTable], list[Cursor]]:
        """Return the next `count` rows, and the place behind each of them.

        Raises:
            DataError: A bad row that is not to be skipped, a row that cannot be tokenized, or a
                whole pass without a row to learn from.
        """
        while (missing := count - self.rows_held) > 0:
            self._read(min(MOST, missing))  # no more: a row that nobody needs may be bad
        tables: list[TokenTable] = []
        cursors: list[Cursor] = []
        while len(cursors) < count:
            table, after = self._held.popleft()
            part = min(len(table), count - len(cursors))
            tables.append(table.first(part))
            cursors += after[:part]
            if part < len(table):
                rest = table.take(np.arange(part, len(table)))
                self._held.appendleft((rest, after[part:]))
        return tables, cursors

    def _read(self, count: int) -> None:
        """Tokenize so many more rows, a pass at a time."""
        rows = islice(self._rows, count)
        for epoch, of_pass in groupby(rows, key=lambda row: row.after.epoch):
            if epoch > self._at.epoch:
                self._end_pass()
            self._keep(list(of_pass))

    def _keep(self, rows: list[StreamRow]) -> None:
        found = self._tokens(rows)
        if found.bad and not self._skips:
            hint = 'Correct them, or leave them out with on_bad_rows="skip".'
            raise bad_rows_error(found.bad, len(rows), hint)
        counts = self._counts
        if found.bad and not counts.bad:
            source, reason = found.bad[0]
            text = f"{source} is left out: {reason}. Others will be, too, without a word each."
            self.notes.append({"event": "warning", "fields": {"message": text}})
        counts.rows += len(rows)
        counts.dropped += found.dropped
        counts.cut += found.cut
        counts.skipped += len(found.bad)
        counts.bad = (counts.bad + found.bad)[:LISTED_IN_REPORT]
        self._at = rows[-1].after
        if found.table is not None:
            counts.kept += len(found.table)
            self._held.append((found.table, [rows[place].after for place in found.places]))

    def _end_pass(self) -> None:
        """Say once what a pass came to, and refuse to go on with nothing."""
        counts = self._counts
        if self._is_whole_pass and not counts.kept:
            reasons = [f"{counts.dropped} have more than max_length tokens"]
            if counts.bad:
                (source, reason), *_ = counts.bad
                reasons.append(f"{counts.skipped} are bad, the first ({source}) because {reason}")
            raise DataError(
                f"No row is left of the {counts.rows} of {self._name}: {'; '.join(reasons)}. "
                "Expected at least one. Raise max_length, or look at the data."
            )
        if self._at.epoch == 0:
            text = f"{self._name} ended after {self._at.place:,} rows and starts over."
            report = counts.summary() if self._is_whole_pass else {}
            fields = {"data": self._name, "message": text, **report}
            self.notes.append({"event": "data", "fields": fields})
        self._counts = _Counts(bad=counts.bad[:1])
        self._is_whole_pass = True


class StreamTables:
    """The rows of a run's steps, from one or several streams."""

    def __init__(self, streams: Sequence[TokenStream], mixture: Mixture, *, at: Places) -> None:
        """Mix streams that begin at `at`."""
        self._streams = streams
        self._mixture = mixture
        self._at = at

    @property
    def rows_held(self) -> int:
        """Tokenized rows that wait."""
        return sum(stream.rows_held for stream in self._streams)

    def chunk(self, first: int, steps: int, batch_size: int) -> Chunk:
        """Return the rows of `steps` steps from step `first` on; call it for one after the other.

        Raises:
            DataError: See `TokenStream.take`.
        """
        places = np.arange(first * batch_size, (first + steps) * batch_size)
        sources, _ = self._mixture.at(places)
        parts: list[TokenTable] = []
        behind: list[list[Cursor]] = []
        for number, stream in enumerate(self._streams):
            tables, cursors = stream.take(int((sources == number).sum()))
            several = len(self._streams) > 1
            parts += [of_source(one, number) if several else one for one in tables]
            behind.append([self._at[number], *cursors])
        # the rows lie source by source; a stable sort of the places says where each belongs
        order = np.empty(len(places), np.int64)
        order[np.argsort(sources, kind="stable")] = np.arange(len(places))
        states = {}
        for step in range(steps + 1):
            taken = np.bincount(sources[: step * batch_size], minlength=len(self._streams))
            states[first + step] = tuple(
                after[count] for after, count in zip(behind, taken.tolist(), strict=True)
            )
        self._at = states[first + steps]
        notes = [note for stream in self._streams for note in stream.notes]
        for stream in self._streams:
            stream.notes.clear()
        return Chunk(join(parts).take(order), states, notes)
