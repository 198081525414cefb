"""What is seen of the first answers equals the divergences of the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdflow_lab.algorithms.across import make_across
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.table import TokenTable
from kdflow_lab.losses import Head, divergence
from kdflow_lab.on_policy.prompts import Prompts
from kdflow_lab.on_policy.watch import Seen, Watch
from kdflow_lab.on_policy.written import Writer

HS, HT = 6, 8
WORDS = ("The answer is 42 in September.", "sun", "a b k x")


class _Rows:
    """Random rows and heads of both sides for a micro-batch."""

    def __init__(self, batch: MicroBatch, student_width: int, teacher_width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = batch
        self.student_hidden = torch.randn(len(batch.labels), HS, generator=generator)
        self.student_head = Head(torch.randn(student_width + 5, HS, generator=generator)).cut(
            student_width
        )
        self.teacher_hidden = torch.randn(len(batch.asked.labels), HT, generator=generator)
        self.teacher_head = Head(torch.randn(teacher_width, HT, generator=generator))

    def show(self, watch: Watch) -> None:
        watch(
            self.batch,
            self.student_hidden,
            self.student_head,
            self.teacher_hidden,
            self.teacher_head,
        )

    def logits(self) -> tuple[Tensor, Tensor]:
        student = self.student_hidden @ self.student_head.weight[: self.student_head.width].T
        return student, self.teacher_hidden @ self.teacher_head.weight.T


def _close(found: np.ndarray, expected: Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def table(prompts: Prompts, tokenizer: Any, sample: Any) -> TokenTable:
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in WORDS]
    samples = [sample(one, prompt=row, finished=False) for row, one in enumerate(ids)]
    return Writer(prompts, None, None, None, max_tokens=256).table([0, 1, 2], samples)


@pytest.fixture
def batch(table: TokenTable) -> MicroBatch:
    return pack(table, [2, 0, 1], step=0, index=0)


def test_it_is_what_the_divergences_say(batch: MicroBatch, tokenizer: Any) -> None:
    rows = _Rows(batch, 1000, 1000)
    watch = Watch(2, None)
    rows.show(watch)
    seen = watch.take()
    assert seen is not None and watch.take() is None
    assert seen.data_rows == (2, 0)
    counts = [len(tokenizer.encode(WORDS[row], add_special_tokens=False)) for row in (2, 0)]
    assert list(seen.lengths) == list(seen.teacher_lengths) == counts
    tokens = sum(counts)
    student, teacher = (one[:tokens] for one in rows.logits())
    labels = batch.labels[:tokens, None]
    assert seen.ids.tolist() == labels[:, 0].tolist()
    _close(seen.kl, divergence("forward_kl", student, teacher))
    for logits, entropy, logprob in (
        (student, seen.student_entropy, seen.student_logprob),
        (teacher, seen.teacher_entropy, seen.teacher_logprob),
    ):
        logp = logits.log_softmax(-1)
        _close(entropy, -(logp.exp() * logp).sum(-1))
        _close(logprob, logp.gather(1, labels)[:, 0])
    assert seen.teacher_width == 1000
    top = teacher.log_softmax(-1).max(-1)
    assert seen.teacher_top.tolist() == top.indices.tolist()
    _close(seen.teacher_top_logprob, top.values)
    assert seen.teacher_label_logprob.tolist() == seen.teacher_logprob.tolist()


def test_all_rows_fit_if_there_are_fewer(batch: MicroBatch) -> None:
    watch = Watch(10, None)
    _Rows(batch, 1000, 1000).show(watch)
    seen = watch.take()
    assert seen is not None
    assert seen.data_rows == (2, 0, 1)
    assert len(seen.kl) == len(batch.labels)


def test_two_tokenizers_are_compared_as_the_loss_compares_them(
    prompts_of_two: Prompts, pair: TokenizerPair, tokenizer: Any, unigram: Any, sample: Any
) -> None:
    ids = [unigram.encode(text, add_special_tokens=False) for text in WORDS]
    samples = [sample([*one, unigram.eos_token_id], prompt=row) for row, one in enumerate(ids)]
    writer = Writer(prompts_of_two, pair, unigram, tokenizer, max_tokens=256)
    batch = pack(writer.table([0, 1, 2], samples), [0, 1, 2], step=0, index=0)
    sizes = len(pair.student), len(pair.teacher)
    rows = _Rows(batch, *sizes)
    across = make_across(pair, *sizes)
    assert across is not None and batch.pairing is not None
    watch = Watch(2, across)
    rows.show(watch)
    seen = watch.take()
    assert seen is not None
    ours = [len(samples[row].ids) for row in (0, 1)]
    theirs = [len(tokenizer.encode(WORDS[row], add_special_tokens=False)) + 1 for row in (0, 1)]
    assert list(seen.lengths) == ours
    assert list(seen.teacher_lengths) == theirs
    whole = across.per_token(
        rows.student_hidden,
        rows.student_head,
        rows.teacher_hidden,
        rows.teacher_head,
        batch.labels,
        batch.pairing,
    ).kd
    whole = whole[: sum(ours)].float()
    assert np.isnan(seen.kl).tolist() == whole.isnan().tolist()  # those without a counterpart
    assert 0 < np.isnan(seen.kl).sum() < len(seen.kl)
    _close(np.nan_to_num(seen.kl), whole.nan_to_num())
    logp = rows.logits()[1][: sum(theirs)].log_softmax(-1)
    _close(seen.teacher_logprob, logp.gather(1, batch.asked.labels[: sum(theirs), None])[:, 0])
    assert seen.teacher_width == len(pair.teacher)
    # where tokens of both begin, the teacher's row there says what it would have written
    begin = [np.cumsum([0, *map(len, one[:-1])]) for one in _pieces(seen, batch, pair)]
    top = rows.logits()[1][: sum(theirs)].log_softmax(-1).max(-1)
    first = {int(place): index for index, place in enumerate(begin[1])}
    expected = [int(top.indices[first[int(at)]]) if int(at) in first else -1 for at in begin[0]]
    assert seen.teacher_top.tolist() == expected
    assert -1 in expected and len(set(expected)) > 2
    known = seen.teacher_top >= 0
    assert np.isnan(seen.teacher_top_logprob).tolist() == (~known).tolist()
    same = np.isfinite(seen.teacher_label_logprob)
    assert same.any() and not (same & ~known).any()
    at = int(np.flatnonzero(same)[-1])  # both end the answer there
    assert seen.teacher_label_logprob[at] == seen.teacher_logprob[-1]


def _pieces(seen: Seen, batch: MicroBatch, pair: TokenizerPair) -> tuple[list[bytes], list[bytes]]:
    """What each looked-at token of student and teacher writes; an end of an answer is one byte."""
    theirs = batch.asked.labels[: len(seen.teacher_logprob)].tolist()
    ours = seen.ids.tolist()
    return (
        [pair.student.token_bytes[one] or b"$" for one in ours],
        [pair.teacher.token_bytes[one] or b"$" for one in theirs],
    )


def test_micro_batches_of_a_step_are_looked_at_until_there_are_enough_rows(
    table: TokenTable,
) -> None:
    whole = _Rows(pack(table, [2, 0, 1], step=0, index=0), 1000, 1000)
    together, watch = Watch(2, None), Watch(2, None)
    whole.show(together)
    for index, row in enumerate([2, 0, 1]):
        part = _Rows(pack(table, [row], step=0, index=index), 1000, 1000)
        start = [0, *np.cumsum([len(one) for one in _labels(table, [2, 0, 1])])][index]
        rows = slice(start, start + len(part.batch.labels))
        part.student_hidden, part.teacher_hidden = (
            whole.student_hidden[rows],
            whole.teacher_hidden[rows],
        )
        part.student_head, part.teacher_head = whole.student_head, whole.teacher_head
        part.show(watch)
    expected, seen = together.take(), watch.take()
    assert expected is not None and seen is not None
    assert seen.data_rows == expected.data_rows == (2, 0)
    assert seen.lengths == expected.lengths
    for name in ("ids", "kl", "student_entropy", "teacher_logprob", "teacher_top"):
        np.testing.assert_allclose(getattr(seen, name), getattr(expected, name), atol=1e-5)


def _labels(table: TokenTable, rows: list[int]) -> list[list[int]]:
    return [pack(table, [row], step=0, index=0).labels.tolist() for row in rows]


def test_it_needs_rows_and_a_teacher(batch: MicroBatch, prompts: Prompts) -> None:
    watch = Watch(2, None)
    empty = pack(prompts.student, [], step=0, index=0)
    _Rows(empty, 1000, 1000).show(watch)
    assert watch.take() is None
    rows = _Rows(batch, 1000, 1000)
    watch(batch, rows.student_hidden, rows.student_head, None, None)
    assert watch.take() is None
