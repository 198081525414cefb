"""Rows of a stream as token ids, a handful at a time, each by itself.

Unlike the rows of a data set that is read whole, a row says its form alone and sees no other row,
so that what becomes of it does not depend on where a handful begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdflow_lab.data.both import same_rows, side_by_side
from kdflow_lab.data.rows import BadRow, Conversation, form_of, parse
from kdflow_lab.data.stream import StreamRow
from kdflow_lab.data.table import TokenTable
from kdflow_lab.data.teacher_input import messages_of_teacher
from kdflow_lab.data.tokens import Kept, RowEncoder
from kdflow_lab.errors import DataError, nearest

if TYPE_CHECKING:
    from kdflow_lab.align.vocabulary import TokenizerPair

Parsed = Conversation | str | BadRow


@dataclasses.dataclass(frozen=True)
class Handful:
    """What became of some rows.

    Attributes:
        table: The kept ones, in order; None if there is none. `row_index` is their number.
        places: Int64[kept], which of the rows each is.
        dropped: Rows that are too long for either model.
        cut: Rows that were cut.
        bad: Source and reason of each bad row.
    """

    table: TokenTable | None
    places: np.ndarray
    dropped: int
    cut: int
    bad: list[tuple[str, str]]


class RowTokens:
    """Tokenizes rows for the student and, where it does not read the same ids, for the teacher."""

    def __init__(
        self,
        tokenizer: Any,
        teacher_tokenizer: Any,
        *,
        max_length: int,
        truncation: Literal["error", "drop", "right"],
        train_turns: Literal["all", "last"],
        pair: TokenizerPair | None = None,
        teacher_input: str | None = None,
    ) -> None:
        """Take what does not change; see `tokens.tokenize` and `both.tokenize_for_both`."""
        turns = train_turns if teacher_input is None else "last"
        self._column, self._pair = teacher_input, pair
        self._limits = (max_length, truncation)
        self._ours = RowEncoder(tokenizer, turns)
        self._theirs = None
        if pair is not None or teacher_input is not None:
            self._theirs = RowEncoder(teacher_tokenizer, turns)

    def __call__(self, rows: Sequence[StreamRow]) -> Handful:
        """Tokenize some rows.

        Raises:
            DataError: As `tokens.tokenize`, but for bad rows, which are returned.
        """
        parsed = [_parsed(one.row) for one in rows]
        ours = self._side(self._ours, parsed, rows)
        table = ours.table() if ours.index else None
        bad = {place: (source, reason) for place, source, reason in ours.bad}
        dropped, cut = ours.dropped, ours.cut
        if self._theirs is not None and table is not None:
            if self._column is not None:
                pairs = zip(parsed, rows, strict=True)
                parsed = [_as_teacher(own, one.row, self._column) for own, one in pairs]
            theirs = self._side(self._theirs, parsed, rows)
            for place, source, reason in theirs.bad:
                bad.setdefault(place, (source, f"as the teacher reads it, {reason}"))
            dropped, cut = max(dropped, theirs.dropped), max(cut, theirs.cut)
            table = self._both(table, theirs, rows)
        if table is None:
            return Handful(None, np.zeros(0, np.int64), dropped, cut, _listed(bad))
        places = table.row_index.astype(np.int64)
        return Handful(_numbered(table, rows), places, dropped, cut, _listed(bad))

    def _both(
        self, table: TokenTable, theirs: Kept, rows: Sequence[StreamRow]
    ) -> TokenTable | None:
        """The rows that are left on both sides, with the teacher's side."""
        found = same_rows(table, theirs.table()) if theirs.index else None
        if found is None or not len(found[0]):
            return None
        try:
            return side_by_side(*found, pair=self._pair)
        except DataError as error:
            first, last = rows[0].source, rows[-1].source
            raise DataError(f"Of the rows {first} … {last}: {error}") from None

    def _side(self, encode: RowEncoder, parsed: list[Parsed], rows: Sequence[StreamRow]) -> Kept:
        kept = Kept(*self._limits)
        good: list[tuple[int, str, Conversation | str]] = []
        for place, (row, one) in enumerate(zip(parsed, rows, strict=True)):
            if isinstance(row, BadRow):
                kept.bad.append((place, one.source, str(row)))
            else:
                good.append((place, one.source, row))
        encoded = encode([row for *_, row in good], [source for _, source, _ in good])
        for (place, source, _), one in zip(good, encoded, strict=True):
            if isinstance(one, BadRow):
                kept.bad.append((place, source, str(one)))
            else:
                kept.add(place, source, one)
        return kept


def _parsed(row: dict[str, Any] | BadRow) -> Parsed:
    """Parse a row by the form of its own columns; a column without a value does not count."""
    if isinstance(row, BadRow):
        return row
    given = {name: value for name, value in row.items() if value is not None}
    try:
        return parse(given, form_of(list(given)))
    except DataError as error:
        return BadRow(str(error))
    except BadRow as problem:
        return problem


def _as_teacher(own: Parsed, row: dict[str, Any] | BadRow, column: str) -> Parsed:
    """A parsed row with the teacher's own prompt."""
    try:
        if isinstance(row, dict) and column not in row:
            raise BadRow(f"there is no column {column!r} (teacher_input).{nearest(column, row)}")
        prompt = None if isinstance(row, BadRow) else row[column]
        return parse({"messages": messages_of_teacher(own, prompt, column)}, "messages")
    except BadRow as problem:
        return problem


def _numbered(table: TokenTable, rows: Sequence[StreamRow]) -> TokenTable:
    """Give the rows of a table, which are places among `rows`, their numbers in the data."""
    index = np.array([rows[place].number for place in table.row_index], np.int32)
    teacher = table.teacher
    if teacher is not None:
        teacher = dataclasses.replace(teacher, row_index=index)
    return dataclasses.replace(table, row_index=index, teacher=teacher)


def _listed(bad: dict[int, tuple[str, str]]) -> list[tuple[str, str]]:
    return [bad[place] for place in sorted(bad)]
