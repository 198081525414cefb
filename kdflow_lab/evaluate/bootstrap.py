"""Bootstrap intervals: how much a figure would move with other held-out rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdflow_lab.errors import ShapeError

BLOCK = 4_000_000
"""Counts of drawn rows that are held at once: 32 MB."""


class Interval(NamedTuple):
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def interval(
    values: ArrayLike, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap the mean of `values` over its first axis.

    Args:
        values: Float[rows] or Float[rows, seeds]; rows are drawn, seeds are averaged.
        level: Of the interval.
        samples: Bootstrap samples.
        seed: Of the drawing.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.asarray(values, dtype=np.float64)
    rows = values.reshape(values.shape[0], -1).mean(axis=1)
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(rows), size=(samples, len(rows)))
    means = rows[draws].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(rows.mean()), float(low), float(high))


def paired_interval(
    ours: ArrayLike, theirs: ArrayLike, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap the mean difference ours - theirs over the same rows.

    Raises:
        ShapeError: The two do not hold the same rows.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape:
        raise ShapeError(f"Paired values are {a.shape} and {b.shape}; expected the same rows.")
    return interval(a - b, level=level, samples=samples, seed=seed)


def resampled_sums(
    columns: NDArray[np.float64], *, samples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Sum columns over rows that are drawn with replacement, again and again.

    Two calls with equally many rows and one seed draw the same rows: their sums are paired. The
    ratio of two sums is the bootstrap sample of a figure that counts a row by its tokens.

    Args:
        columns: Float64[rows, columns]; a column with a NaN has no sum.
        samples: How often.
        seed: Of the drawing.

    Returns:
        Float64[samples, columns].

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 10.3 (a ratio of
    two means over the same units) and chapter 13 (percentile intervals).
    """
    columns = np.asarray(columns, dtype=np.float64)
    rows = len(columns)
    generator = np.random.default_rng(seed)
    sums = np.empty((samples, columns.shape[1]))
    block = max(1, min(samples, BLOCK // rows))
    for start in range(0, samples, block):
        counts = np.stack(
            [
                np.bincount(generator.integers(0, rows, rows), minlength=rows)
                for _ in range(min(block, samples - start))
            ]
        )
        sums[start : start + len(counts)] = counts.astype(np.float64) @ columns
    return sums
