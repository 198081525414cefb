"""Shares of a mixture: kept in every part of it, exactly countable, nothing drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow_lab.data.mixture import Mixture
from kdflow_lab.errors import ConfigError

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(0, 10**11), st.integers(1, 300))
def test_each_place_has_one_source_and_shares_are_kept_everywhere(
    weights: list[float], start: int, count: int
) -> None:
    mixture = Mixture(weights)
    places = np.arange(start, start + count)
    counts = mixture.counts(np.append(places, start + count))
    assert (counts.sum(axis=0) == np.append(places, start + count)).all()
    assert (counts >= 0).all() and set(np.diff(counts).ravel().tolist()) <= {0, 1}
    sources, numbers = mixture.at(places)
    for source, share in enumerate(mixture.shares):
        mine = numbers[sources == source]
        # one after the other, none left out
        assert mine.tolist() == list(range(counts[source, 0], counts[source, -1]))
        # 1e-6: how finely a share is kept, which shows only after so many rows
        slack = len(weights) + 1e-6 * count
        assert abs(len(mine) - share * count) < slack
        assert len(mine) <= mixture.most(count)[source]


def test_shares_are_exact_over_a_whole_number_of_rounds() -> None:
    sources, _ = Mixture([3, 1]).at(np.arange(400))
    assert np.bincount(sources).tolist() == [300, 100]
    batches = sources.reshape(-1, 8).tolist()
    assert {batch.count(1) for batch in batches} == {2}


def test_one_source_has_all() -> None:
    sources, numbers = Mixture([0.2]).at(np.arange(5))
    assert sources.tolist() == [0] * 5 and numbers.tolist() == list(range(5))
    assert Mixture([0.2]).most(7) == [7]


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -2]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected one above 0"):
        Mixture(weights)


def test_weights_too_far_apart_are_refused() -> None:
    for weights in ([1.0, 1e-9], [1e-9, 1.0], [1e-9, 1.0, 1.0]):
        with pytest.raises(ConfigError, match="less than a millionth"):
            Mixture(weights)
