"""The SGLang teacher: its hook against a bare copy, and its call against SGLang's own way.

32 prompts of 256 tokens, a llama of one thin layer that is 1,024 wide, float32 on the CPU: 33.5 MB
of hidden rows. All is measured in turn in each round, so that a busy machine slows all of it:

    hook          seconds inside the forward hook, which writes the rows into the ring's slot
    bare copy     the same bytes, one `copy_` a prompt, into another slot of the same ring: by one
                  thread and by all, the faster of the two counts
    call          `fill` until the rows are in the slot; prefill throughput follows from it
    transformers  the same call of the other backend
    stock         `generate(return_hidden_states=True)` of the same SGLang with the same arguments,
                  and a tensor made of the lists that it returns

What bounds it: the hook does what the bare copy does, with other things in the caches, and finds
each sequence's place. The stock way turns every number into a Python float, twice through pickle.
The name of this file is not `sglang`: a script's folder is the first place that imports look at.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import machine, print_result, timing

from kdflow_lab.engines import ENVIRONMENT
from kdflow_lab.teacher import make_teacher
from kdflow_lab.teacher.sglang import versions
from kdflow_lab.teacher.sglang.arguments import SglangOptions, server_arguments
from kdflow_lab.teacher.sglang.process import environment_of
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind, Message
from kdflow_lab.transport.request import read_request
from kdflow_lab.transport.ring import Ring

PROMPTS, TOKENS, HIDDEN_SIZE, VOCABULARY = 32, 256, 1024, 1024
DISCARDED = 2
MOST_HOOK_RATIO, LEAST_RATIO = 2.0, 5.0
POOL = {"max_total_tokens": 4 * PROMPTS * TOKENS}


def write_model(folder: str) -> None:
    """Save a thin model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4 * TOKENS,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def rounds_of(folder: str, prompts: torch.Tensor, rounds: int, threads: int) -> dict[str, Any]:
    """Measure all ways in turn; seconds of each round, the discarded ones left out."""
    theirs = Stock(folder, prompts, threads)
    sglang, _ = make_teacher(
        "sglang", folder, threads=threads, sglang={"engine_args": POOL}, dtype="float32"
    )
    plain, _ = make_teacher("transformers", folder, threads=threads, dtype="float32")
    total = prompts.numel()
    layout = SlotLayout(
        max_tokens=total,
        max_sequences=PROMPTS,
        max_rows=total,
        hidden_size=HIDDEN_SIZE,
        dtype_name="float32",
    )
    student, fd = Ring.create(layout, slots=2)
    ring = Ring.attach(fd, layout, slots=2, keep_fd=True)
    source, warm = torch.randn(total, HIDDEN_SIZE), student.hidden(1, total)
    names = ("hook", "copy", "call", "transformers", "generate", "tensor")
    times: dict[str, list[float]] = {name: [] for name in names}
    worst = 0.0
    for sequence in range(1, DISCARDED + rounds + 1):
        student.write_request(
            0,
            sequence=sequence,
            step=sequence,
            micro_batch=0,
            rank=0,
            input_ids=prompts.flatten(),
            cu_seqlens=torch.arange(PROMPTS + 1) * TOKENS,
            rows=torch.arange(total),
        )
        request = read_request(0, ring, Message(Kind.REQUEST, 0, sequence))
        start = time.perf_counter()
        sglang.fill([request])
        times["call"].append(time.perf_counter() - start)
        times["hook"].append(sglang.hook_s)  # type: ignore[attr-defined]
        rows = student.hidden(0, total).clone()
        times["copy"].append(min(bare_copy(warm, source, n) for n in {1, threads}))
        start = time.perf_counter()
        plain.fill([request])
        times["transformers"].append(time.perf_counter() - start)
        for name, seconds in theirs.round().items():
            times[name].append(seconds)
        worst = max(worst, (rows - student.hidden(0, total)).abs().max().item())
    sglang.close()
    theirs.close()
    ring.close()
    student.close()
    return {name: seconds[DISCARDED:] for name, seconds in times.items()} | {"worst": worst}


def bare_copy(out: torch.Tensor, source: torch.Tensor, threads: int) -> float:
    """Seconds to copy one tensor into another, a prompt at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for first in range(0, len(source), TOKENS):
        out[first : first + TOKENS].copy_(source[first : first + TOKENS])
    seconds = time.perf_counter() - start
    torch.set_num_threads(before)
    return seconds


class Stock:
    """SGLang's own way, in a process of its own."""

    def __init__(self, folder: str, prompts: torch.Tensor, threads: int) -> None:
        """Start it; the first `round` waits until it is up."""
        arguments = server_arguments(
            folder,
            SglangOptions(engine_args=POOL),
            dtype="float32",
            device="cpu",
            trust_remote_code=False,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("_sglang_stock.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_of(arguments, device="cpu", threads=threads),
            text=True,
        )
        self._say({"arguments": arguments, "prompts": prompts.tolist()})

    def round(self) -> dict[str, float]:
        """Run the prompts once: seconds of `generate` and of `tensor`."""
        self._say({})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"generate"'):
                return json.loads(line)
        raise RuntimeError("SGLang's own way ended early; its reason stands above")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(message)}\n")
        self._process.stdin.flush()


def main(rounds: int) -> None:
    """Measure and print."""
    if reason := versions.why_not("cpu"):
        print_result({"benchmark": "sglang_teacher", "skipped": reason})
        return
    where = machine()
    threads = where["cores"]
    os.environ.update(ENVIRONMENT)  # as in a lab: idle threads sleep
    torch.set_num_threads(threads)
    prompts = torch.randint(
        VOCABULARY, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(0)
    )
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as folder:
        write_model(folder)
        ours = rounds_of(folder, prompts, rounds, threads)
    ours["stock"] = [sum(pair) for pair in zip(ours["generate"], ours["tensor"], strict=True)]
    named = {name: timing(values) for name, values in ours.items() if name != "worst"}

    def ratio(more: str, less: str) -> float:
        """Median over the rounds: both halves of a round met the same busy machine."""
        return statistics.median(a / b for a, b in zip(ours[more], ours[less], strict=True))

    hook_ratio, faster = ratio("hook", "copy"), ratio("stock", "call")
    total = PROMPTS * TOKENS
    print_result(
        {
            "benchmark": "sglang_teacher",
            "sglang": versions.installed().version,
            "prompts": PROMPTS,
            "tokens": TOKENS,
            "hidden_size": HIDDEN_SIZE,
            "bytes": total * HIDDEN_SIZE * 4,
            "threads": threads,
            "hook": named["hook"],
            "bare_copy": named["copy"],
            "hook_over_copy": round(hook_ratio, 2),
            "call": named["call"],
            "stock": named["stock"],
            "stock_generate": named["generate"],
            "stock_tensor": named["tensor"],
            "times_faster_than_stock": round(faster, 1),
            "transformers_call": named["transformers"],
            "prefill_tokens_per_s": {
                "sglang": round(total / statistics.median(ours["call"])),
                "transformers": round(total / statistics.median(ours["transformers"])),
            },
            "largest_difference_of_backends": ours["worst"],
            "aims": {"hook_over_copy": MOST_HOOK_RATIO, "times_faster": LEAST_RATIO},
            "aims_met": hook_ratio <= MOST_HOOK_RATIO and faster >= LEAST_RATIO,
            "machine": where,
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
