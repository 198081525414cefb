"""Batched answers of a `transformers` model: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdflow_lab.errors import DataError, ModelError
from kdflow_lab.losses.head import Head
from kdflow_lab.rollout._draw import draw
from kdflow_lab.rollout._packed import PackedRows, why_not
from kdflow_lab.rollout._padded import PaddedRows
from kdflow_lab.rollout._streams import Streams
from kdflow_lab.rollout.sampling import Sample, Sampling

Progress = Callable[[int, int], None]
FEW_ROWS = 64
"""Up to so many rows the head's product is faster with the weight on the left (on a CPU)."""
SMALL_PRODUCT = 1 << 23
"""Multiplications of a layer's widest product up to which one CPU thread is faster alone than with
others that sleep between products: 8 x 256 x 1,024 took 76 us instead of 148 (measured)."""


class Decoder:
    """Writes answers with one model; keeps its memory between calls. For one thread at a time."""

    def __init__(self, model: Any, *, max_rows: int = 128, cache_bytes: int = 2 << 30) -> None:
        """Take a model over: its attention is replaced where that is possible.

        Args:
            model: A causal language model in eval mode.
            max_rows: Answers that are written together.
            cache_bytes: Keys and values of these may take so much memory; fewer are written
                together if need be.
        """
        self._model = model
        self.why_padded = why_not(model)
        """Why rows are padded and computed to the end of the longest; empty if they are not."""
        self._rows = PaddedRows(model) if self.why_padded else PackedRows(model)
        self._max_rows = max_rows
        self._cache_bytes = cache_bytes
        self._token_bytes = _cache_bytes_per_token(model)
        config = model.config.get_text_config()
        self._widest = max(config.hidden_size, getattr(config, "intermediate_size", 0) or 0)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[NDArray],
        sampling: Sampling,
        *,
        version: int = -1,
        on_progress: Progress | None = None,
    ) -> list[Sample]:
        """Answer every prompt `n` times.

        Args:
            prompts: Integer[length] each, token ids; none empty.
            sampling: How.
            version: Of the weights.
            on_progress: Called after every position with (answers ended, answers in all); what it
                raises ends the writing.

        Returns:
            The samples, by prompt, then by sample.

        Raises:
            DataError: A prompt is empty or holds an id that the model does not have.
            ModelError: Logits are not finite.
        """
        head = Head.of(self._model, sampling.vocab_size)
        check_prompts(prompts, self._model.get_input_embeddings().weight.shape[0])
        order = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
        total = len(prompts) * sampling.n
        found: list[Sample] = []

        def progress(ended: int) -> None:
            if on_progress is not None:
                on_progress(len(found) + ended, total)

        try:
            while order:
                count = self._together([len(prompts[one]) for one in order], sampling)
                batch, order = order[:count], order[count:]
                found += self._batch(prompts, batch, sampling, head, version, progress)
        except ModelError:
            self._rows.forget()
            raise
        return sorted(found, key=lambda one: (one.prompt, one.sample))

    def _together(self, lengths: list[int], sampling: Sampling) -> int:
        """How many of these prompts, the shortest first, are answered together; at least one."""
        count = 1
        while count < len(lengths):
            rows = (count + 1) * sampling.n
            places = lengths[count] + sampling.max_new_tokens
            if rows > self._max_rows or rows * places * self._token_bytes > self._cache_bytes:
                break
            count += 1
        return count

    def _batch(
        self,
        prompts: Sequence[NDArray],
        batch: list[int],
        sampling: Sampling,
        head: Head,
        version: int,
        progress: Callable[[int], None],
    ) -> list[Sample]:
        """Answer some prompts together."""
        names = [(prompt, sample) for prompt in batch for sample in range(sampling.n)]
        streams = None if sampling.is_greedy else Streams(sampling.seed, names)
        longest = sampling.max_new_tokens
        ids_RT = np.empty((len(names), longest), np.int32)
        logprobs_RT = np.empty((len(names), longest), np.float32)
        lines = np.arange(len(names))  # which line of these each row of the batch writes
        lengths = np.full(len(names), longest)
        finished = np.zeros(len(names), bool)
        stop_ids = np.array(sampling.stop_ids, np.int64)
        hidden = self._rows.prefill([prompts[one] for one in batch], sampling.n, longest)
        for position in range(longest):
            uniforms = None
            if streams is not None:
                uniforms = torch.from_numpy(streams.at(position)).to(hidden.device)
            drawn, logprobs = draw(next_logits(head, hidden), uniforms, sampling)
            ids = drawn.cpu().numpy()
            ids_RT[lines, position] = ids
            logprobs_RT[lines, position] = logprobs.cpu().numpy()
            ended = np.flatnonzero(np.isin(ids, stop_ids))
            if ended.size:
                lengths[lines[ended]] = position + 1
                finished[lines[ended]] = True
                left = self._rows.drop(ended.tolist())
                lines, drawn = lines[left], drawn[torch.from_numpy(left).to(drawn.device)]
                if streams is not None:
                    streams.keep(left)
            progress(len(names) - len(lines))
            if not lines.size or position + 1 == longest:
                break
            with _few_threads(hidden, self._widest):
                hidden = self._rows.step(drawn)
        return [
            Sample(
                *name,
                ids_RT[line, : lengths[line]].copy(),
                logprobs_RT[line, : lengths[line]].copy(),
                bool(finished[line]),
                version,
            )
            for line, name in enumerate(names)
        ]


@contextlib.contextmanager
def _few_threads(hidden: Tensor, widest: int) -> Iterator[None]:
    """Use one CPU thread for a pass over rows Float[B, H] whose products are small."""
    threads = torch.get_num_threads()
    if hidden.device.type != "cpu" or hidden.numel() * widest > SMALL_PRODUCT:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def next_logits(head: Head, hidden: Tensor) -> Tensor:
    """Float32[B, width] for hidden states Float[B, H] of few rows; as `Head.logits`, but faster."""
    on_the_left = hidden.device.type == "cpu" and 1 < hidden.shape[0] <= FEW_ROWS
    if not on_the_left or head.adapter is not None:
        return head.logits(hidden)
    logits = (head.weight[: head.width] @ hidden.T).T.float().contiguous()
    if head.bias is not None:
        logits += head.bias[: head.width]
    head.transform_(logits)
    return logits


def check_prompts(prompts: Sequence[NDArray], vocab_size: int) -> None:
    """Refuse prompts that a model cannot read.

    Raises:
        DataError: One is empty, or holds an id that there is not.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {number} is empty: expected at least one token id.")
        low, high = int(np.min(prompt)), int(np.max(prompt))
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise DataError(
                f"Prompt {number} holds the token id {wrong}, but the student's vocabulary has "
                f"{vocab_size} ids. Encode it with the student's tokenizer."
            )


def _cache_bytes_per_token(model: Any) -> int:
    """Bytes of the keys and values of one token, from the model's config."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * next(model.parameters()).element_size()
