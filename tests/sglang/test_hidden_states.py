"""Both backends give transformers' hidden states, whatever is asked and in whatever order."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
import tiny_models as models
import torch
from torch import Tensor


def _assert_close(got: Tensor, want: Tensor) -> None:
    """1e-5 in float32; in bfloat16 two steps of the row's largest number."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        return
    step = 2.0 ** (want.float().abs().amax(-1, keepdim=True).log2().floor() - 7)
    assert ((got.float() - want.float()).abs() <= 2 * step).all()


def test_all_rows_of_a_ragged_batch(subject: Any, slots: Any) -> None:
    """With rows of one token and rows of several chunks."""
    sequences = models.sequences()
    request = slots.request(sequences)
    subject.teacher.fill([request])
    want = torch.cat(models.expected(subject.folder, sequences, subject.dtype))
    _assert_close(slots.rows(request), want)


@pytest.mark.parametrize("order", ["ascending", "any"])
def test_wanted_rows_only(subject: Any, slots: Any, order: str) -> None:
    """Responses of 1, some and all tokens, with holes; a sequence of which nothing is wanted."""
    sequences = models.sequences(seed=1)
    starts = torch.tensor([0, *map(len, sequences)]).cumsum(0).tolist()
    wanted = [
        starts[1] - 1,  # of the sequence of one token
        *range(starts[2] + 3, starts[3]),
        *range(starts[3] + 50, starts[3] + 140, 7),  # over the borders of chunks
        *range(starts[3] + 141, starts[4]),
        starts[6] - 1,
    ]
    if order == "any":
        generator = torch.Generator().manual_seed(0)
        wanted = [wanted[i] for i in torch.randperm(len(wanted), generator=generator).tolist()]
    request = slots.request(sequences, wanted)
    subject.teacher.fill([request])
    want = torch.cat(models.expected(subject.folder, sequences, subject.dtype))
    _assert_close(slots.rows(request), want[torch.tensor(wanted)])


def test_several_requests_at_once_and_a_slot_used_again(subject: Any, slots: Any) -> None:
    batches = [models.sequences((5, 90), seed=2), models.sequences((1,), seed=3)]
    for turn in range(2):
        requests = [
            slots.request(batch, slot=(number + turn) % 3) for number, batch in enumerate(batches)
        ]
        subject.teacher.fill(requests)
        for request, batch in zip(requests, batches, strict=True):
            want = torch.cat(models.expected(subject.folder, batch, subject.dtype))
            _assert_close(slots.rows(request), want)


def test_the_same_prompt_again_is_computed_again(subject: Any, slots: Any) -> None:
    """Nothing comes out of a cache: all rows are there, and the same to the bit."""
    sequences = models.sequences((120, 120), seed=4)
    sequences[1] = sequences[0]
    first = slots.request(sequences, slot=0)
    subject.teacher.fill([first])
    second = slots.request(sequences, slot=1)
    subject.teacher.fill([second])
    rows = slots.rows(first)
    assert torch.equal(rows, slots.rows(second))
    _assert_close(rows[:120], rows[120:])


def test_an_idle_teacher_leaves_the_cores_to_others(subject: Any) -> None:
    def seconds() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in getattr(subject.teacher, "pids", [])]
        return sum(one.user + one.system for one in times)

    before = seconds()
    time.sleep(1.0)
    # SGLang's dispatcher of replicas polls without a pause, and has no option for that
    assert seconds() - before < (1.3 if subject.ranks == "dp_size" else 0.3)


def test_ranks_are_processes(subject: Any) -> None:
    """Tensor-parallel ranks and replicas exist; the canary asked each replica."""
    teacher = subject.teacher
    if teacher.backend != "sglang":
        assert not hasattr(teacher, "drift")
        return
    assert teacher.replicas == (2 if subject.ranks == "dp_size" else 1)
    titles = [" ".join(psutil.Process(pid).cmdline()) for pid in teacher.pids]
    schedulers = [title for title in titles if "sglang::scheduler" in title]
    assert len(schedulers) == (2 if subject.ranks else 1), titles
    assert teacher.drift["tokens"] == 124 * teacher.replicas
    assert teacher.drift["largest"] < (1e-4 if subject.dtype == torch.float32 else 0.5)
    assert teacher.drift["replicas_apart"] < 1e-4


def test_nothing_wanted(subject: Any, slots: Any) -> None:
    subject.teacher.fill([slots.request(models.sequences((3,)), [])])
