"""Two small vocabularies over a common text, with random models: what the algorithms take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.align.pairing import Pairing
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.config import DistillConfig
from kdflow_lab.losses import Head, LossOutput

LETTERS = tuple(bytes([one]) for one in b" abcdeht\n")
STUDENT = Vocabulary(
    (None, *LETTERS, b" a", b"the", b"ab", b"  ", b"abcde", b"ed", None), {"eos": 0}
)
TEACHER = Vocabulary(
    (*LETTERS, b"th", b" the", b"abc", b"ab", b"  a", b" b", b"he", None, b"eat", None),
    {"eos": 16, "turn_end": 18},
)
PAIR = TokenizerPair(TEACHER, STUDENT)
TEXTS = (b"the abcde the", b"  ab  eat", b"", b"head\n a bed", b"abcde")
HS, HT = 5, 7


def encode(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """Longest token first, and the end."""
    by_bytes = {one: token for token, one in enumerate(vocabulary.token_bytes) if one}
    ids, at = [], 0
    while at < len(text):
        end = max(n for n in range(1, 9) if text[at : at + n] in by_bytes and at + n <= len(text))
        ids.append(by_bytes[text[at : at + end]])
        at += end
    return [*ids, vocabulary.roles["eos"]]


def _places(
    vocabulary: Vocabulary, texts: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ids, starts, ends, samples = [], [], [], []
    base = 0
    for sample, text in enumerate(texts):
        at = base
        for token in encode(vocabulary, text):
            width = len(vocabulary.token_bytes[token] or b"x")
            ids.append(token)
            starts.append(at)
            ends.append(at + width)
            samples.append(sample)
            at += width
        base += len(text) + 2
    ids, starts, ends, samples = (np.array(one, np.int64) for one in (ids, starts, ends, samples))
    return ids, starts, ends, samples


def pairing_of(pair: TokenizerPair, texts: Sequence[bytes]) -> tuple[Pairing, Tensor]:
    """Where the tokens of the texts lie, and the student's labels."""
    ids, start, end, sample = _places(pair.student, texts)
    other_ids, other_start, other_end, other_sample = _places(pair.teacher, texts)
    pairing = Pairing(start, end, other_start, other_end, sample, other_sample, other_ids)
    return pairing, torch.from_numpy(ids)


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed + 97 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Case(NamedTuple):
    """A micro-batch with two models.

    Attributes:
        hidden: Float[T, Hs], a leaf.
        head: The student's; its weight is a leaf.
        teacher: Float[U, Ht].
        teacher_head: The teacher's.
        labels: Int64[T].
        pairing: Of the tokens.
    """

    hidden: Tensor
    head: Head
    teacher: Tensor
    teacher_head: Head
    labels: Tensor
    pairing: Pairing


def case(
    pair: TokenizerPair = PAIR,
    texts: Sequence[bytes] = TEXTS,
    dtype: torch.dtype = torch.float64,
    **head: Any,
) -> Case:
    """Random models for some texts; the heads may be padded beyond the vocabularies."""
    pairing, labels = pairing_of(pair, texts)
    width, other = len(pair.student), len(pair.teacher)
    return Case(
        made(len(labels), HS, dtype=dtype).requires_grad_(),
        Head(made(width + 3, HS, dtype=dtype).requires_grad_(), vocab_size=width, **head),
        made(len(pairing.teacher_labels), HT, dtype=dtype),
        Head(made(other + 2, HT, dtype=dtype), vocab_size=other),
        labels,
        pairing,
    )


def some(one: Case, first: int, last: int) -> Case:
    """The micro-batch of some of a case's rows of data, with the same numbers."""
    ours = (one.pairing.student_sample >= first) & (one.pairing.student_sample < last)
    theirs = (one.pairing.teacher_sample >= first) & (one.pairing.teacher_sample < last)
    whole = one.pairing
    pairing = Pairing(
        whole.student_start[ours], whole.student_end[ours], whole.teacher_start[theirs],
        whole.teacher_end[theirs], whole.student_sample[ours] - first,
        whole.teacher_sample[theirs] - first, whole.teacher_labels[theirs],
    )  # fmt: skip
    at, other = torch.from_numpy(ours), torch.from_numpy(theirs)
    return one._replace(
        hidden=one.hidden[at], teacher=one.teacher[other], labels=one.labels[at], pairing=pairing
    )


def algorithm(
    name: str, pair: TokenizerPair = PAIR, params: dict[str, Any] | None = None, **options: Any
) -> Any:
    """An algorithm that knows the vocabularies."""
    config = DistillConfig(algorithm=name, algorithm_params=params or {}, **options)
    one: Any = make_algorithm(config)
    if pair is not None and hasattr(one, "meet"):
        one.meet(pair)
    if pair is not None and hasattr(one, "init_beside"):
        one.beside(HS, HT).double()
        width, other = len(pair.student), len(pair.teacher)
        one.init_beside(Head(made(width, HS)), Head(made(other, HT)))
    return one


def loss(one: Any, of: Case, num_valid_tokens: int | None = None) -> LossOutput:
    """Its loss of a case."""
    return one.loss(
        of.hidden, of.head, of.teacher, of.teacher_head, of.labels, pairing=of.pairing,
        num_valid_tokens=len(of.labels) if num_valid_tokens is None else num_valid_tokens,
    )  # fmt: skip


def gradients(output: LossOutput, of: Case) -> list[Tensor]:
    """With respect to the student's rows and head."""
    inputs = [one for one in (of.hidden, of.head.weight, of.head.bias) if one is not None]
    return list(torch.autograd.grad(output.loss, inputs))


def with_head(of: Case, weight: Tensor) -> Case:
    """The case with another weight of the student's head."""
    return of._replace(head=replace(of.head, weight=weight))
