"""Where each row of a run comes from if several data sets have weights."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.errors import ConfigError

FINEST = 1_000_000
"""Shares are fractions with at most this denominator, so that int64 holds all products exactly."""


class Mixture:
    """Deals the places of an endless stream to sources, by their weights and as evenly as can be.

    With weights w that sum to 1, source j has w[j] * p of the first p places, less or more by fewer
    than n rows for n sources: not only over a run but in every part of it, so also in every step.
    Nothing is drawn at random, and nothing has to be remembered: of p places the first source gets
    floor(p * w[0]), of the rest the second one gets its share likewise, and so on.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Take one weight a source, above 0; their sum may be anything.

        Raises:
            ConfigError: There is none, one is not above 0, or its share is below a millionth.
        """
        if not weights or min(weights) <= 0:
            raise ConfigError(f"weights are {list(weights)}; expected one above 0 for each source.")
        exact = [Fraction(weight) for weight in weights]
        self.shares = [float(weight / sum(exact)) for weight in exact]
        """Of each source, in 0..1."""
        self._ratios: list[Fraction] = []  # of what the sources before leave
        for number, weight in enumerate(exact[:-1]):
            ratio = (weight / sum(exact[number:])).limit_denominator(FINEST)
            if not 0 < ratio < 1:
                raise ConfigError(
                    f"The weights {list(weights)} are too far apart: a source would have less than "
                    "a millionth of the rows. Leave it out, or give it more."
                )
            self._ratios.append(ratio)

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.shares)

    def counts(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the first p places each source has.

        Args:
            places: Int64[P], values of p, below 10**12.

        Returns:
            Int64[n, P]; the columns sum to p, and no count falls as p rises.
        """
        rest = np.asarray(places, np.int64)
        counts = []
        for ratio in self._ratios:
            counts.append(rest * ratio.numerator // ratio.denominator)
            rest = rest - counts[-1]
        return np.stack([*counts, rest])

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each place, and which of its own rows it is, counted from 0.

        Args:
            places: Int64[P], counted from 0.
        """
        places = np.asarray(places, np.int64)
        before = self.counts(places)
        sources = (self.counts(places + 1) - before).argmax(axis=0)
        return sources, before[sources, np.arange(len(places))]

    def most(self, count: int) -> list[int]:
        """Return how many of any `count` places in a row each source has at most."""
        extra = len(self) if len(self) > 1 else 0
        return [min(count, int(count * share) + extra) for share in self.shares]
