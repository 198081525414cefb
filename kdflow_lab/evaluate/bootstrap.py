"""Bootstrap intervals: how much a figure would move with other held-out rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kdflow_lab.errors import ShapeError


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
