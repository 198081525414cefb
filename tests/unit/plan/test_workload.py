"""The data's share of a plan: steps and micro-batches as the run will cut them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdflow_lab.attention import PackedIndex
from kdflow_lab.config import DistillConfig
from kdflow_lab.plan.make import Basis
from kdflow_lab.plan.workload import Lengths, padded, workload


def _lengths(count: int, tokens: int) -> Lengths:
    rows = np.full(count, tokens, np.int64)
    return Lengths(rows, rows, rows // 2, rows // 2, count)


def test_equal_rows_by_hand() -> None:
    work = workload(_lengths(64, 101), DistillConfig(batch_size=8, epochs=2), 1)
    assert (work.steps, work.micro_batches) == (16, 1)
    assert (work.tokens, work.responses) == (800, 400)
    assert (work.largest_tokens, work.largest_asked) == (800, 400)
    assert work.largest_padded == 8 * 128  # rows of 100 stand in groups 128 wide
    assert work.squares == 8 * 100**2


def test_a_smaller_budget_cuts_micro_batches_and_students_share_them() -> None:
    config = DistillConfig(batch_size=8, steps=3, micro_batch_tokens=256, max_length=256)
    work = workload(_lengths(64, 101), config, 1)
    assert (work.micro_batches, work.largest_tokens) == (4, 200)
    two = workload(_lengths(64, 101), config, 2)
    assert (two.micro_batches, two.tokens) == (2, 800)


def test_padding_is_that_of_packed_attention() -> None:
    lengths = [1, 3, 31, 33, 64, 65, 200]
    index = PackedIndex.of(torch.tensor([0, *lengths]).cumsum(0).int())
    assert padded(lengths) == sum(group.count * group.width for group in index.groups)


def test_a_sample_stands_for_all_rows(basis: Basis) -> None:
    rows = basis.lengths.student
    sampled = Lengths(rows, rows, rows // 2, rows // 2, 10 * len(rows))
    work = workload(sampled, DistillConfig(batch_size=10), 1)
    assert work.rows == 10 * len(rows)
    assert work.steps == len(rows)


def test_answers_that_are_not_written_yet_count_as_long_as_they_may_become(basis: Basis) -> None:
    changed = basis.changed({}, {"on_policy": True, "max_new_tokens": 64})
    work = workload(_lengths(64, 101), changed.config, 1)
    assert work.micro_batches >= 4  # so that the teacher reads one while another one trains
    assert work.sizes.tokens < 8192


@pytest.mark.parametrize("weights", [[3.0, 1.0]])
def test_weights_of_several_data_sets_count(weights: list[float]) -> None:
    short, long = np.full(50, 11), np.full(50, 101)
    both = np.concatenate([short, long])
    sources = np.repeat([0, 1], 50)
    lengths = Lengths(both, both, both // 2, both // 2, 100, sources)
    data = [
        {"data": "a.jsonl", "weight": weights[0]},
        {"data": "b.jsonl", "weight": weights[1]},
    ]
    work = workload(lengths, DistillConfig(data=data, batch_size=8, steps=10), 1)
    assert work.tokens == pytest.approx(8 * (0.75 * 10 + 0.25 * 100))
