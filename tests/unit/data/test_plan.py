"""The order of the data: every row once an epoch, the same for any number of ranks."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow_lab.data.plan import DataPlan
from kdflow_lab.errors import ConfigError, DataError, ShapeError

BUDGET = 40


@st.composite
def rows(draw):
    """Lengths up to what a budget of 40 run tokens takes, and response lengths below them."""
    lengths = draw(st.lists(st.integers(2, BUDGET + 1), min_size=1, max_size=30))
    responses = [draw(st.integers(1, length - 1)) for length in lengths]
    return np.array(lengths), np.array(responses)


def _plan(data, **options):
    fields = {"batch_size": 8, "world_size": 1, "micro_batch_tokens": BUDGET, "seed": 3}
    return DataPlan(*data, **{**fields, **options})


def _flat(step):
    return [row for by_rank in step.micro_batches for rows in by_rank for row in rows]


@settings(deadline=None, max_examples=30)
@given(rows(), st.integers(1, 12), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(data, batch_size, seed):
    plan = _plan(data, batch_size=batch_size, seed=seed)
    num_rows = len(data[0])
    stream = []
    while len(stream) < 3 * num_rows:
        stream += plan.step(len(stream) // batch_size).rows
    for epoch in range(3):
        part = stream[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(part) == list(range(num_rows))


@settings(deadline=None, max_examples=30)
@given(
    rows(),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(BUDGET, 3 * BUDGET),
    st.none() | st.integers(1, 4),
)
def test_ranks_and_budgets_do_not_change_the_global_batch(
    data, batch_size, world_size, budget, most_rows
):
    alone = _plan(data, batch_size=batch_size)
    shared = _plan(
        data, batch_size=batch_size, world_size=world_size, micro_batch_tokens=budget,
        micro_batch_rows=most_rows,
    )  # fmt: skip
    for step in range(4):
        one, many = alone.step(step), shared.step(step)
        assert one.rows == many.rows
        assert Counter(_flat(one)) == Counter(_flat(many)) == Counter(one.rows)
        assert one.num_valid_tokens == many.num_valid_tokens == data[1][_flat(many)].sum()


@settings(deadline=None, max_examples=50)
@given(rows(), st.integers(1, 12), st.integers(1, 4), st.none() | st.integers(1, 4))
def test_micro_batches_keep_to_budgets_and_bounds(data, batch_size, world_size, most_rows):
    plan = _plan(data, batch_size=batch_size, world_size=world_size, micro_batch_rows=most_rows)
    bounds = plan.max_tokens(), plan.max_sequences(), plan.max_rows()
    assert bounds[0] <= BUDGET
    assert bounds[1] <= min(batch_size, most_rows or batch_size)
    assert bounds[2] <= bounds[0]
    for step in range(5):
        for by_rank in plan.step(step).micro_batches:
            assert len(by_rank) == world_size
            assert any(by_rank)
            for part in by_rank:
                assert (data[0][part] - 1).sum() <= bounds[0]
                assert len(part) <= bounds[1]
                assert data[1][part].sum() <= bounds[2]


@st.composite
def mixtures(draw):
    """Rows of up to four data sets, each with a weight, in any order."""
    lengths, responses = draw(rows())
    number = draw(st.integers(1, min(4, len(lengths))))
    sources = draw(
        st.permutations([*range(number), *(k % number for k in range(len(lengths) - number))])
    )
    weights = draw(st.lists(st.floats(0.05, 20), min_size=number, max_size=number))
    return (lengths, responses), {"sources": np.array(sources), "weights": weights}


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(1, 12), st.integers(0, 5))
def test_shares_of_a_mixture_are_the_weights_and_no_row_comes_twice_too_early(
    mixture, batch_size, seed
):
    data, of = mixture
    plan = _plan(data, batch_size=batch_size, seed=seed, **of)
    stream = np.array([row for step in range(30) for row in plan.step(step).rows])
    drawn = of["sources"][stream]
    shares = np.array(of["weights"]) / sum(of["weights"])
    for source, share in enumerate(shares):
        mine = stream[drawn == source]
        group = np.flatnonzero(of["sources"] == source).tolist()
        so_far = np.cumsum(drawn == source)
        assert abs(so_far - share * np.arange(1, len(stream) + 1)).max() < len(shares) + 1e-3
        passes = [mine[k : k + len(group)] for k in range(0, len(mine), len(group))]
        assert all(sorted(one) == group for one in passes[:-1])
        assert len(set(passes[-1])) == len(passes[-1]) if passes else True


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(1, 12), st.integers(1, 4), st.none() | st.integers(1, 4))
def test_micro_batches_of_a_mixture_keep_to_budgets_and_bounds(
    mixture, batch_size, world_size, most_rows
):
    (lengths, responses), of = mixture
    plan = _plan(
        (lengths, responses), batch_size=batch_size, world_size=world_size,
        micro_batch_rows=most_rows, **of,
    )  # fmt: skip
    alone = _plan((lengths, responses), batch_size=batch_size, **of)
    bounds = plan.max_tokens(), plan.max_sequences(), plan.max_rows()
    for step in (0, 1, 2, 7, 1000):
        one = plan.step(step)
        assert one.rows == alone.step(step).rows and len(one.rows) == batch_size
        assert Counter(_flat(one)) == Counter(one.rows)
        for by_rank in one.micro_batches:
            for part in by_rank:
                assert (lengths[part] - 1).sum() <= bounds[0] <= BUDGET
                assert len(part) <= bounds[1]
                assert responses[part].sum() <= bounds[2]


def test_without_weights_the_order_is_that_of_one_data_set():
    data = np.arange(2, 33), np.ones(31, np.int64)
    sources = np.arange(31) % 3
    joined = _plan(data, sources=sources)
    assert [joined.step(k) for k in range(6)] == [_plan(data).step(k) for k in range(6)]
    assert _plan(data, sources=sources, weights=[1, 2, 3]).steps_per_epoch == 31 / 8


def test_bounds_are_no_larger_than_what_comes():
    """Rows all alike: the bounds are reached, not just kept."""
    plan = DataPlan([11] * 50, [4] * 50, batch_size=8, world_size=1, micro_batch_tokens=35)
    largest = max(plan.step(0).micro_batches, key=lambda by_rank: len(by_rank[0]))[0]
    assert (plan.max_tokens(), plan.max_sequences()) == (35, len(largest))
    assert plan.max_rows() == 14  # 3.5 rows of the budget, 4 response tokens each
    small = DataPlan([11] * 50, [4] * 50, batch_size=2, world_size=1, micro_batch_tokens=8192)
    assert (small.max_tokens(), small.max_sequences(), small.max_rows()) == (20, 2, 8)


def test_bounds_know_that_a_row_can_come_twice_in_a_step():
    """At the border of two epochs the longest row may end one and open the next."""
    plan = DataPlan([31, 3], [20, 1], batch_size=2, world_size=1, micro_batch_tokens=100)
    assert plan.max_tokens() == 60
    assert plan.max_rows() == 40


def test_any_step_can_be_planned_alone():
    data = np.arange(2, 33), np.ones(31, np.int64)
    straight, jumping = _plan(data), _plan(data)
    expected = [straight.step(step) for step in range(20)]
    for step in (17, 3, 4, 19, 3, 0):
        assert jumping.step(step) == expected[step]
    assert _plan(data, seed=4).step(0).rows != expected[0].rows


def test_epochs_have_different_orders():
    plan = _plan((np.full(16, 3), np.ones(16, np.int64)), batch_size=16)
    orders = [plan.step(step).rows for step in range(3)]
    assert all(a != b for a, b in pairwise(orders))


def test_ranks_get_like_amounts_of_work():
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 200, 1000)
    plan = _plan(
        (lengths, np.ones_like(lengths)), batch_size=64, world_size=4, micro_batch_tokens=512
    )
    for step in range(10):
        loads = np.zeros(4)
        for by_rank in plan.step(step).micro_batches:
            loads += [(lengths[part] - 1).sum() for part in by_rank]
        assert loads.max() - loads.min() < 0.1 * loads.mean()


def test_micro_batches_of_a_step_are_alike():
    """66 tokens a rank in a budget of 40: two of 33, not one of 40 and a crumb."""
    plan = _plan((np.full(24, 12), np.ones(24, np.int64)), batch_size=12, world_size=2)
    loads = [11 * len(part) for by_rank in plan.step(0).micro_batches for part in by_rank]
    assert loads == [33, 33, 33, 33]
    plan = _plan((np.full(24, 12), np.ones(24, np.int64)), batch_size=4, world_size=1)
    assert [len(by_rank[0]) for by_rank in plan.step(0).micro_batches] == [2, 2]


def test_fewer_rows_than_ranks_leave_some_without_work():
    plan = _plan((np.full(9, 5), np.ones(9, np.int64)), batch_size=2, world_size=3)
    (by_rank,) = plan.step(0).micro_batches
    assert sorted(len(part) for part in by_rank) == [0, 1, 1]


def test_data_smaller_than_a_batch_wraps_around():
    plan = _plan((np.full(3, 5), np.ones(3, np.int64)), batch_size=8)
    assert len(plan.step(0).rows) == 8
    assert max(Counter(plan.step(0).rows).values()) == 3
    assert plan.steps_per_epoch == 3 / 8


def test_a_step_is_planned_within_a_millisecond():
    lengths = np.random.default_rng(0).integers(2, 300, 10_000)
    plan = _plan(
        (lengths, np.ones_like(lengths)), batch_size=128, world_size=4, micro_batch_tokens=2048
    )
    plan.step(0)
    best = 1.0
    for step in range(1, 20):
        start = time.process_time()
        plan.step(step)
        best = min(best, time.process_time() - start)
    assert best < 1e-3
    assert plan.step(19) is plan.step(19)


def test_errors_say_what_to_do():
    good = np.full(3, 5), np.ones(3, np.int64)
    with pytest.raises(
        DataError, match=r"2 of 3 rows .* runs 99 tokens.* is 40.*Raise micro_batch"
    ):
        _plan((np.array([100, 5, 60]), good[1]))
    with pytest.raises(DataError, match="no row to plan"):
        _plan((np.array([], int), np.array([], int)))
    with pytest.raises(DataError, match="Row 1 has less than two tokens"):
        _plan((np.array([5, 1, 5]), good[1]))
    with pytest.raises(ShapeError, match=r"\(3,\) and response_lengths \(2,\)"):
        _plan((good[0], good[1][:2]))
    with pytest.raises(DataError, match=r"2 weights, and rows of the data sets \[0\]"):
        _plan(good, sources=[0, 0, 0], weights=[1, 1])
    with pytest.raises(ShapeError, match="Weights need sources"):
        _plan(good, weights=[1, 1])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        _plan(good, batch_size=0)
    with pytest.raises(ConfigError, match="no step -1"):
        _plan(good).step(-1)


def test_first_rows_of_a_step_are_not_the_longest_ones() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 400)
    plan = DataPlan(
        lengths, lengths - 5, batch_size=16, world_size=1, micro_batch_tokens=600, seed=3
    )
    first = [plan.step(step).micro_batches[0][0][:2] for step in range(25)]
    for step, rows in enumerate(first):
        assert rows[0] == plan.step(step).rows[0]
    mean = lengths[[row for rows in first for row in rows]].mean()
    assert abs(mean / lengths.mean() - 1) < 0.15
