"""Tokenized rows as flat arrays, which travel between ranks without pickling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.errors import ShapeError

_ARRAYS = (
    "input_ids",
    "offsets",
    "response_mask",
    "row_index",
    "start",
    "end",
    "logprobs",
    "source",
)


def tokens_run(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of rows of these lengths that go through the model: all but the last.

    A token's hidden state predicts the next token. The last one has no next, and no token after
    it that would attend to it: running it would change nothing. Budgets count these tokens.
    """
    return lengths - 1


@dataclass(frozen=True)
class TokenTable:
    """Tokenized rows, one behind the other.

    Attributes:
        input_ids: Int32[sum of lengths].
        offsets: Int64[N + 1]: row i is `input_ids[offsets[i]:offsets[i + 1]]`.
        response_mask: UInt8, like `input_ids`: 1 where a token is trained, which means that the one
            before it predicts it. Never 1 at the first token of a row.
        row_index: Int32[N]: the row of the data that each came from. Of several data sets that are
            read whole the rows are counted through, of streams each by itself.
        teacher: The same N rows as the teacher reads them, where it does not read these very ids:
            with another tokenizer, or another prompt. Its own `teacher` is None.
        start: Int64[sum of response_lengths], with a teacher of another tokenizer: where each
            trained token begins in the text that both sides have in common, counted within its row
            (`kdflow_lab.align.pairing`). None otherwise.
        end: Likewise, where it ends.
        logprobs: Float32[sum of response_lengths], nats: of each trained token under the weights
            that sampled it. None where the tokens were not sampled by the student.
        source: Int32[N]: which of several data sets each row is of; None if there is one.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    response_mask: NDArray[np.uint8]
    row_index: NDArray[np.int32]
    teacher: TokenTable | None = None
    start: NDArray[np.int64] | None = None
    end: NDArray[np.int64] | None = None
    logprobs: NDArray[np.float32] | None = None
    source: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit each other.

        Raises:
            ShapeError: With the sizes.
        """
        sizes = (len(self.input_ids), len(self.response_mask), int(self.offsets[-1]))
        if len(set(sizes)) > 1 or len(self.offsets) != len(self.row_index) + 1:
            raise ShapeError(
                f"A token table has arrays that don't fit: {sizes[0]} ids, {sizes[1]} mask values, "
                f"{len(self.offsets)} offsets up to {sizes[2]}, and {len(self.row_index)} rows. "
                "Expected as many ids as the last offset says. Make tables with tokenize()."
            )
        if self.teacher is not None and len(self.teacher) != len(self):
            raise ShapeError(
                f"A token table has {len(self)} rows, and {len(self.teacher)} as the teacher reads "
                "them; expected the same rows. Make such tables with tokenize_for_both()."
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.row_index)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Int64[N]: tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def response_offsets(self) -> NDArray[np.int64]:
        """Int64[N + 1]: the trained tokens of row i are numbers [i] … [i + 1] - 1 of all."""
        sums = np.concatenate([[0], np.cumsum(self.response_mask, dtype=np.int64)])
        return sums[self.offsets]

    @cached_property
    def response_lengths(self) -> NDArray[np.int64]:
        """Int64[N]: trained tokens of each row."""
        return np.diff(self.response_offsets)

    @property
    def asked(self) -> TokenTable:
        """The rows as the teacher reads them."""
        return self if self.teacher is None else self.teacher

    @cached_property
    def longest_lengths(self) -> NDArray[np.int64]:
        """Int64[N]: tokens of each row, on the side where it has more."""
        return np.maximum(self.lengths, self.asked.lengths)

    def take(self, rows: NDArray[np.int64]) -> TokenTable:
        """Return the table of some rows, in their order."""
        rows = np.asarray(rows, np.int64)
        tokens = ranges(self.offsets[rows], self.offsets[rows + 1])
        trained = ranges(self.response_offsets[rows], self.response_offsets[rows + 1])
        return TokenTable(
            input_ids=self.input_ids[tokens],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[rows])]),
            response_mask=self.response_mask[tokens],
            row_index=self.row_index[rows],
            teacher=None if self.teacher is None else self.teacher.take(rows),
            start=None if self.start is None else self.start[trained],
            end=None if self.end is None else self.end[trained],
            logprobs=None if self.logprobs is None else self.logprobs[trained],
            source=None if self.source is None else self.source[rows],
        )

    def first(self, count: int) -> TokenTable:
        """Return the table of the first `count` rows, or of all if there are fewer."""
        return self.take(np.arange(min(count, len(self))))

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return the ids and the response mask of a row, as views."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[part], self.response_mask[part]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, the teacher's under `teacher.`; their dtypes are torch's."""
        named = {name: getattr(self, name) for name in _ARRAYS}
        own = {name: array for name, array in named.items() if array is not None}
        if self.teacher is None:
            return own
        theirs = self.teacher.arrays()
        return own | {f"teacher.{name}": array for name, array in theirs.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> TokenTable:
        """Make the table that gave these `arrays`."""
        own = {name: array for name, array in arrays.items() if "." not in name}
        theirs = {
            name.removeprefix("teacher."): array for name, array in arrays.items() if "." in name
        }
        return cls(**own, teacher=cls.from_arrays(theirs) if theirs else None)


def of_source(table: TokenTable, number: int, *, first_row: int = 0) -> TokenTable:
    """Return the table as that of data set `number`, its rows counted from `first_row`."""
    index = (table.row_index + first_row).astype(np.int32)
    teacher = table.teacher
    return replace(
        table,
        row_index=index,
        source=np.full(len(table), number, np.int32),
        teacher=None if teacher is None else replace(teacher, row_index=index),
    )


def join(tables: Sequence[TokenTable]) -> TokenTable:
    """Put tables behind one another.

    Where only some have a side of the teacher's, it reads the rows of the others as they are.

    Raises:
        ShapeError: Some know the places of their tokens or their source, and others do not.
    """
    if len(tables) == 1:
        return tables[0]
    joined: dict[str, np.ndarray] = {}
    for name in _ARRAYS:
        arrays = [getattr(table, name) for table in tables]
        known = [array for array in arrays if array is not None]
        if known and len(known) < len(arrays):
            raise ShapeError(f"Only {len(known)} of {len(arrays)} token tables have {name!r}.")
        if known and name != "offsets":
            joined[name] = np.concatenate(known)
    ends = np.concatenate([table.lengths for table in tables]).cumsum()
    joined["offsets"] = np.concatenate([np.zeros(1, np.int64), ends])
    teacher = None
    if any(table.teacher is not None for table in tables):
        teacher = join([replace(table.asked, source=None, logprobs=None) for table in tables])
    return TokenTable(**joined, teacher=teacher)


def ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of several ranges, one range behind the other."""
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - first, lengths)
