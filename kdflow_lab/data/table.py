"""Tokenized rows as flat arrays, which travel between ranks without pickling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.errors import ShapeError


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
        row_index: Int32[N]: the row of the data set that each came from.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    response_mask: NDArray[np.uint8]
    row_index: NDArray[np.int32]

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

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.row_index)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Int64[N]: tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def response_lengths(self) -> NDArray[np.int64]:
        """Int64[N]: trained tokens of each row."""
        sums = np.concatenate([[0], np.cumsum(self.response_mask, dtype=np.int64)])
        return np.diff(sums[self.offsets])

    def first(self, count: int) -> TokenTable:
        """Return the table of the first `count` rows, or of all if there are fewer; no copy."""
        count = min(count, len(self))
        end = self.offsets[count]
        return TokenTable(
            self.input_ids[:end],
            self.offsets[: count + 1],
            self.response_mask[:end],
            self.row_index[:count],
        )

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return the ids and the response mask of a row, as views."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[part], self.response_mask[part]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name; their dtypes are torch's by name, too."""
        return {
            "input_ids": self.input_ids,
            "offsets": self.offsets,
            "response_mask": self.response_mask,
            "row_index": self.row_index,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> TokenTable:
        """Make the table that gave these `arrays`."""
        return cls(**arrays)
