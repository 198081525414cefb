"""What is asked of a rollout, and what comes back: token ids, never text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdflow_lab.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    The filters work one after another, as in `transformers`: temperature, then the `top_k`
    likeliest, then the smallest set of them that holds `top_p` of what is left, then those at least
    `min_p` times as likely as the likeliest. (SGLang measures `top_p` before `top_k` is applied.)

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: In (0, 1]; 1 keeps all.
        top_k: 0 keeps all.
        min_p: In [0, 1]; 0 keeps all.
        max_new_tokens: Longest answer, a stop id included.
        n: Answers to each prompt.
        stop_ids: An answer ends with the first of these that is drawn. Nothing else ends it: the
            model's own end-of-sequence ids count only if they are among them.
        seed: Of the draws. With the transformers backend the number that decides over position t of
            answer s to prompt p depends on (seed, p, s, t) alone.
        vocab_size: Ids from here on are never drawn: rows of a padded head that no tokenizer knows.
            None draws from all rows.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 128
    n: int = 1
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: A value cannot be used.
        """
        rules = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "n": (self.n >= 1, "at least 1"),
            "stop_ids": (all(one >= 0 for one in self.stop_ids), "token ids"),
            "seed": (0 <= self.seed < 1 << 64, "0 to 2**64 - 1"),
            "vocab_size": (self.vocab_size is None or self.vocab_size > 0, "at least 1, or None"),
        }
        for name, (fits, expected) in rules.items():
            if not fits:
                got = getattr(self, name)
                raise ConfigError(
                    f"Sampling: {name} = {got!r} cannot be used: expected {expected}."
                )
        object.__setattr__(self, "stop_ids", tuple(int(one) for one in self.stop_ids))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, unchanged."""
        return self.temperature == 1 and not self.has_filters

    @property
    def has_filters(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One answer.

    Attributes:
        prompt: Which prompt of the request, from 0.
        sample: Which answer to it, 0 … n - 1.
        ids: Int32[T], what was drawn; a stop id is the last one if, and only if, it was drawn.
        logprobs: Float32[T], in nats: the model's own log-probability of each token, at temperature
            1 and over the whole vocabulary, however the token was drawn. This is what a training
            step computes for the same ids, so that the two can be compared.
        finished: Ended by a stop id; False if it was cut at `max_new_tokens`.
        version: Of the weights that wrote it: the optimizer step, or -1 for the model's folder.
    """

    prompt: int
    sample: int
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finished: bool
    version: int


def to_arrays(samples: Sequence[Sample]) -> dict[str, NDArray]:
    """Lay samples end to end, for a message or for `student.group.share_arrays`.

    Returns:
        `about` Int64[N, 5]: prompt, sample, tokens, finished, version; `ids` Int32[sum of tokens];
        `logprobs` Float32, the same.
    """
    about = [
        (one.prompt, one.sample, len(one.ids), int(one.finished), one.version) for one in samples
    ]
    return {
        "about": np.array(about, np.int64).reshape(-1, 5),
        "ids": np.concatenate([np.empty(0, np.int32), *(one.ids for one in samples)]),
        "logprobs": np.concatenate([np.empty(0, np.float32), *(one.logprobs for one in samples)]),
    }


def from_arrays(arrays: dict[str, NDArray]) -> list[Sample]:
    """Read what `to_arrays` wrote."""
    samples, start = [], 0
    for prompt, sample, length, finished, version in arrays["about"].tolist():
        part = slice(start, start + length)
        samples.append(
            Sample(
                prompt,
                sample,
                arrays["ids"][part],
                arrays["logprobs"][part],
                bool(finished),
                version,
            )
        )
        start += length
    return samples
