"""How fast a student writes: `rollout.decode` against `transformers`' `generate`, and a hand-over.

The same model, prompts, lengths and threads, one after the other in turns; medians. Two sizes of
batch and vocabulary: 8 rows x 32,000 ids as in the project's performance aims, where the head's
product and the drawing are most of a step, and the zoo's student with 64 rows, where Python is.
Nothing ends an answer early in the first two; in the third, answers end at random, and rows that
have ended are no longer computed, which `generate` does until the last one has.

The hand-over writes the first model into shared memory and lets a decoder answer with it, in one
process: what `RolloutEnd.sync` costs without the collectives.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Threads that wait sleep, as in a lab's engines: else a busy machine decides what is measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _common import machine, print_result, timing

from kdflow_lab.rollout.decode import Decoder
from kdflow_lab.rollout.sampling import Sampling
from kdflow_lab.rollout.weights import entries_of, write
from kdflow_lab.transport.segment import WeightSegment

REPEATS = 5
CASES: dict[str, dict[str, Any]] = {
    "8 rows, 32,000 ids, 64 new": {"rows": 8, "new": 64, "vocab": 32_000, "stops": 0},
    "64 rows, 1,024 ids, 64 new": {"rows": 64, "new": 64, "vocab": 1024, "stops": 0},
    "64 rows, 1,024 ids, most end early": {"rows": 64, "new": 64, "vocab": 1024, "stops": 40},
}


def make_model(vocab: int) -> Any:
    """A student of 4 layers x 256 with tied heads and random weights."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=1024,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def make_prompts(rows: int, vocab: int) -> list[np.ndarray]:
    """Log-normal lengths, 70 tokens on average."""
    numbers = np.random.default_rng(0)
    lengths = np.clip(numbers.lognormal(np.log(64), 0.4, rows), 8, 200).astype(int)
    return [numbers.integers(1, vocab, length) for length in lengths]


def by_generate(model: Any, prompts: list[np.ndarray], case: dict[str, Any]) -> int:
    """Answer with `transformers`; return the tokens that were wanted."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    stops = list(range(1, 1 + case["stops"]))
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=case["new"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            eos_token_id=stops or None,
        )
    answers = output[:, width:].numpy()
    ended = np.isin(answers, stops)
    first = np.where(ended.any(1), ended.argmax(1) + 1, answers.shape[1])
    return int(first.sum())


def by_decoder(decoder: Decoder, prompts: list[np.ndarray], case: dict[str, Any], seed: int) -> int:
    """Answer with ours; return the tokens."""
    stops = tuple(range(1, 1 + case["stops"]))
    sampling = Sampling(max_new_tokens=case["new"], stop_ids=stops, seed=seed)
    return sum(len(sample.ids) for sample in decoder.generate(prompts, sampling))


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Seconds, and tokens a second."""
    start = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - start
    return seconds, tokens / seconds


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """Both ways in turns, the first of each left out."""
    model = make_model(case["vocab"])
    decoder = Decoder(copy.deepcopy(model))
    prompts = make_prompts(case["rows"], case["vocab"])
    theirs, ours = [], []
    for turn in range(REPEATS + 1):
        theirs.append(timed(lambda: by_generate(model, prompts, case)))
        ours.append(timed(lambda turn=turn: by_decoder(decoder, prompts, case, turn)))
    ratios = [one[1] / other[1] for one, other in zip(ours[1:], theirs[1:], strict=True)]
    return {
        "generate": timing([seconds for seconds, _ in theirs[1:]]),
        "decoder": timing([seconds for seconds, _ in ours[1:]]),
        "decoder_tokens_per_s": round(statistics.median(rate for _, rate in ours[1:])),
        "times_as_many_tokens_per_s": round(statistics.median(ratios), 2),
        "lowest_and_highest": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def hand_over() -> dict[str, Any]:
    """Write a model into a segment, again and again."""
    model = make_model(32_000)
    segment = WeightSegment.create(entries_of(model, torch.float32))
    taken = []
    for version in range(REPEATS + 1):
        start = time.perf_counter()
        write(model, segment, dtype=torch.float32, version=version)
        taken.append(time.perf_counter() - start)
    size = segment.num_bytes
    return {**timing(taken[1:]), "mib": round(size / 2**20, 1)}


def main() -> None:
    """Compare and print."""
    torch.set_num_threads(int(os.environ.get("KDFLOW_BENCH_THREADS", "2")))
    result: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads()}
    for name, case in CASES.items():
        result[name] = compare(case)
        print(name, result[name], flush=True)
    result["hand_over"] = hand_over()
    print_result(result)


if __name__ == "__main__":
    main()
