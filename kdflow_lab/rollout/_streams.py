"""Random numbers by address: (seed, prompt, sample, position), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Positions that are drawn ahead at once."""
MOST = 1 - 2.0**-52
"""The largest number: its product with a sum of probabilities stays below the sum."""


class Streams:
    """One counter-based generator a row (Philox: Salmon et al., 2011), read position by position.

    Source: "Parallel random numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405.
    """

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]]) -> None:
        """Begin at position 0.

        Args:
            seed: 0 … 2**64 - 1.
            rows: (prompt, sample) of each row, both below 2**32.
        """
        self._generators = [
            np.random.Generator(
                np.random.Philox(key=np.array([seed, prompt << 32 | sample], np.uint64))
            )
            for prompt, sample in rows
        ]
        self._block = np.empty((len(rows), 0))
        self._start = 0

    def at(self, position: int) -> NDArray[np.float64]:
        """Float64[rows] in [0, 1), one for each row; positions are asked for in ascending order."""
        if position >= self._start + self._block.shape[1]:
            self._start += self._block.shape[1]
            drawn = [generator.random(BLOCK) for generator in self._generators]
            self._block = np.minimum(np.stack(drawn), MOST)
        return self._block[:, position - self._start]

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, in this order."""
        self._generators = [self._generators[row] for row in rows]
        self._block = self._block[rows]
