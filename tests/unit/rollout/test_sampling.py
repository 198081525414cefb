"""What is asked is checked where it is asked; samples travel as arrays and come back the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.rollout import parcels
from kdflow_lab.rollout.sampling import Sample, Sampling, from_arrays, to_arrays


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"max_new_tokens": 0},
        {"n": 0},
        {"stop_ids": (3, -1)},
        {"seed": -1},
        {"seed": 1 << 64},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def _samples() -> list[Sample]:
    return [
        Sample(0, 0, np.array([5, 2], np.int32), np.array([-0.5, -1.25], np.float32), True, 7),
        Sample(0, 1, np.array([9], np.int32), np.array([-3], np.float32), False, -1),
        Sample(4, 0, np.empty(0, np.int32), np.empty(0, np.float32), False, 7),
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_samples_survive_their_journey(count: int) -> None:
    samples = _samples()[:count]
    described, fd = parcels.pack(to_arrays(samples))
    back = from_arrays(parcels.unpack(described, fd))
    assert len(back) == count
    for one, other in zip(samples, back, strict=True):
        assert (one.prompt, one.sample, one.finished, one.version) == (
            other.prompt,
            other.sample,
            other.finished,
            other.version,
        )
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert other.ids.dtype == np.int32
        assert other.logprobs.dtype == np.float32


@pytest.mark.parametrize("lengths", [(), (3,), (2, 5, 1)])
def test_prompts_survive_their_journey(lengths: tuple[int, ...]) -> None:
    prompts = [np.arange(length) for length in lengths]
    described, fd = parcels.pack(parcels.joined(prompts))
    back = parcels.apart(parcels.unpack(described, fd))
    assert [one.tolist() for one in back] == [one.tolist() for one in prompts]


def test_a_parcel_that_is_cut_off_is_refused() -> None:
    described, _ = parcels.pack({"ids": np.arange(1000)})
    _, short = parcels.pack({"ids": np.arange(10)})
    with pytest.raises(TransportError, match="cut off"):
        parcels.unpack(described, short)
    with pytest.raises(TransportError, match="without"):
        parcels.unpack(described, None)
