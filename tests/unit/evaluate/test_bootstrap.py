"""Bootstrap intervals: as wide as they should be, and paired where rows are."""

from __future__ import annotations

import numpy as np
import pytest

from kdflow_lab.errors import ShapeError
from kdflow_lab.evaluate.bootstrap import interval, paired_interval


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    """200 samples of a skewed distribution with mean 1; 95 % +- 4 standard errors and a bias."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        got = interval(rng.exponential(size=80), samples=300, seed=seed)
        covered += got.low <= 1.0 <= got.high
    assert 0.87 <= covered / 200 <= 0.99


def test_the_width_is_that_of_the_normal_interval():
    values = np.random.default_rng(1).normal(5.0, 2.0, size=1000)
    got = interval(values)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_lower_level_is_narrower():
    values = np.random.default_rng(1).normal(size=100)
    wide, narrow = interval(values, level=0.95), interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).normal(size=50)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_equal_values_have_no_width():
    assert interval([0.25] * 10) == (0.25, 0.25, 0.25)


def test_seeds_are_averaged_and_rows_are_drawn():
    """Two seeds that differ by a constant: the rows' spread alone makes the width."""
    rows = np.random.default_rng(2).normal(size=60)
    both = interval(np.stack([rows - 10, rows + 10], axis=1))
    assert both == pytest.approx(interval(rows))


def test_pairing_takes_the_rows_own_difficulty_out():
    """Rows that differ widely, and a model that is better by 0.1 on each: far from zero."""
    rng = np.random.default_rng(3)
    theirs = rng.normal(0, 5, size=200)
    ours = theirs + 0.1 + rng.normal(0, 0.05, size=200)
    paired = paired_interval(ours, theirs)
    assert 0.08 < paired.low < paired.mean < paired.high < 0.12
    unpaired = interval(ours)
    assert paired.high - paired.low < 0.05 * (unpaired.high - unpaired.low)


def test_the_difference_is_ours_minus_theirs():
    assert paired_interval([3.0, 3.0], [1.0, 1.0]) == (2.0, 2.0, 2.0)


def test_pairs_of_other_rows_are_refused():
    with pytest.raises(ShapeError, match="expected the same rows"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
