"""Tokens follow the distribution that was asked for, and random numbers follow their address."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdflow_lab.errors import ModelError
from kdflow_lab.rollout import _draw
from kdflow_lab.rollout._draw import draw, invert, leave_out
from kdflow_lab.rollout._streams import BLOCK, MOST, Streams
from kdflow_lab.rollout.sampling import Sampling


def _expected(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution to draw from, one row at a time, with `transformers`' own filters."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    return warpers(ids, logits.clone()).softmax(-1)  # type: ignore[arg-type]


CASES = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=5),
    Sampling(top_p=0.7),
    Sampling(min_p=0.2),
    Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.05),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
@pytest.mark.parametrize("size", [7, 256, 700])
def test_a_grid_of_numbers_gives_the_distribution(sampling: Sampling, size: int) -> None:
    """A fine grid of numbers in [0, 1) hits each token in proportion to its probability."""
    torch.manual_seed(size)
    logits = torch.randn(1, size) * 2
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, logprobs = draw(logits.expand(count, -1).contiguous(), grid, sampling)
    found = torch.bincount(ids, minlength=size) / count
    expected = _expected(logits, sampling)[0]
    assert (found - expected).abs().max() < 2.1 / count + 1e-5
    assert not found[expected == 0].any()
    # whatever the filters, the log-probability is the model's own
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[0, ids], rtol=1e-5, atol=1e-5)


def test_the_nucleus_of_a_large_flat_vocabulary_is_found_by_sorting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_draw, "LIKELIEST", 16)
    torch.manual_seed(0)
    logits = torch.randn(3, 500)
    probs = logits.softmax(-1)
    leave_out(probs, Sampling(top_p=0.8))
    expected = _expected(logits, Sampling(top_p=0.8))
    assert torch.equal(probs > 0, expected > 0)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_the_ends_of_the_distribution_are_tokens_that_may_be_drawn(size: int) -> None:
    weights = torch.zeros(2, size)
    weights[0, size // 2], weights[1, size - 1] = 0.3, 5.0
    for number in (0.0, 0.5, MOST):
        ids = invert(weights, torch.full((2,), number, dtype=torch.float64))
        assert ids.tolist() == [size // 2, size - 1]


@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_not_finite_are_said(greedy: bool) -> None:
    logits = torch.randn(2, 300)
    logits[1, 7] = float("nan")
    uniforms = None if greedy else torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(ModelError, match="diverged"):
        draw(logits, uniforms, Sampling(temperature=0.0 if greedy else 1.0))


def test_numbers_depend_on_their_address_alone() -> None:
    names = [(0, 0), (0, 1), (3, 0), (2**31, 5)]
    alone = [Streams(11, [name]) for name in names]
    together = Streams(11, names)
    kept = np.arange(4)
    for position in range(2 * BLOCK + 3):
        if position == BLOCK + 1:  # the second row ends, the last takes its place
            together.keep(np.array([0, 3, 2]))
            kept = np.array([0, 3, 2])
        expected = [one.at(position)[0] for one in alone]
        assert together.at(position).tolist() == [expected[row] for row in kept]
    assert Streams(12, names).at(0).tolist() != Streams(11, names).at(0).tolist()
    assert len(set(Streams(11, names).at(0).tolist())) == 4
