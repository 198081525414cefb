"""The chunked loss against the matrix products that no exact method can avoid, and its memory.

T response tokens, student and teacher hidden sizes Hs and Ht, V ids. A step needs four products:
both models' logits, the gradient of the student's rows, and that of its head. `over_products` is
the time of a whole step (loss, gradients, backward; kd_ratio 0.5, so cross-entropy and agreement
included) over those four alone, walked in the chunks that the loss chooses and with outputs as
fresh as the loss's. The naive loss holds all logits and leaves the gradient to autograd.

    time      a fresh process for each dtype, all its rows interleaved, so that a busy machine slows
              all; medians. The first round is discarded: it touches the memory for the first time.
              Divergences other than the two KL are measured on fewer tokens, those that look for
              the largest entries apart.
    memory    a fresh process for each size: peak resident memory (VmHWM, reset before the step)
              less what was resident before it, less the float32 sum that is the head's gradient. In
              bfloat16 the gradient is narrowed in the place of that sum.

What bounds it: in bfloat16 the products are twice as fast and the float32 passes are not, and
every chunk's product of the weight gradient is read once more to be added in float32.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from _common import machine, print_result

from kdflow_lab.losses import NAMES, Head, chunked_kd_loss
from kdflow_lab.losses import _chunks as chunks

TOKENS, STUDENT, TEACHER, IDS = 1024, 1024, 2048, 151_936
FEWER_TOKENS = 512
MAIN = ("forward_kl", "reverse_kl")
SORTING = ("adaptive_kl", "hrl", "top1_ce", "topk_forward_kl", "topk_reverse_kl")
ROUNDS, FEWER_ROUNDS = 5, 3
SIZES = [(512, IDS), (TOKENS, IDS), (8192, IDS), (TOKENS, 32_000), (TOKENS, 262_144)]
DTYPES = ("float32", "bfloat16")
WANTED = {"float32": 1.3, "bfloat16": 1.15}


class Problem:
    """Random rows and heads of one size and dtype."""

    def __init__(self, tokens: int, ids: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.student = torch.randn(tokens, STUDENT).to(dtype).requires_grad_()
        self.teacher = torch.randn(tokens, TEACHER).to(dtype)
        # in pieces: a float32 copy of the whole head would be the peak of the memory
        self.weight = _random(ids, STUDENT, dtype).requires_grad_()
        self.teacher_weight = _random(ids, TEACHER, dtype)
        self.labels = torch.randint(0, ids, (tokens,))

    def forget(self) -> None:
        """Drop the gradients."""
        self.student.grad = self.weight.grad = None

    def products(self) -> None:
        """The four products in the loss's own chunks."""
        rows, weight = self.student.detach(), self.weight.detach()
        dtype, ids = rows.dtype, weight.shape[0]
        size = chunks.plan(
            "auto", num_tokens=len(rows), width=ids, row_bytes=2 * ids * dtype.itemsize,
            temporaries=6, extra_bytes=rows.nbytes, device=rows.device,
        ).chunk_tokens  # fmt: skip
        logits, theirs = (torch.empty(size, ids, dtype=dtype) for _ in range(2))
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        for part in chunks.slices(len(rows), size):
            held = slice(0, part.stop - part.start)
            torch.mm(rows[part], weight.t(), out=logits[held])
            torch.mm(self.teacher[part], self.teacher_weight.t(), out=theirs[held])
            torch.mm(logits[held], weight, out=grad_rows[part])
            torch.mm(logits[held].t(), rows[part], out=grad_weight)

    def ours(self, name: str) -> None:
        """A whole step of the chunked loss."""
        self.forget()
        chunked_kd_loss(
            self.student, Head(self.weight), self.teacher, Head(self.teacher_weight), self.labels,
            divergence=name, kd_ratio=0.5,
        ).loss.backward()  # fmt: skip

    def naive(self, name: str) -> None:
        """A whole step with all logits at once."""
        self.forget()
        logits = (self.student @ self.weight.t()).float()
        with torch.no_grad():
            teacher = torch.log_softmax((self.teacher @ self.teacher_weight.t()).float(), -1)
        student = torch.log_softmax(logits, -1)
        first, second = (teacher, student) if name == "forward_kl" else (student, teacher)
        kd = F.kl_div(second, first, reduction="sum", log_target=True)
        ce = F.nll_loss(student, self.labels, reduction="sum")
        ((kd + ce) / (2 * len(self.labels))).backward()


def _random(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.empty(rows, columns, dtype=dtype)
    for part in chunks.slices(rows, 8192):
        weight[part] = torch.randn(part.stop - part.start, columns) / columns**0.5
    return weight


def interleave(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time all steps in turn, in seconds; a first round is discarded."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def time_of(dtype_name: str) -> dict[str, Any]:
    """Measure the ratios of one dtype."""
    dtype = getattr(torch, dtype_name)
    problem = Problem(TOKENS, IDS, dtype)
    steps: dict[str, Callable[[], None]] = {"products": problem.products}
    for name in MAIN:
        steps[name] = lambda name=name: problem.ours(name)
        steps[f"naive {name}"] = lambda name=name: problem.naive(name)
    times = interleave(steps, ROUNDS)
    found: dict[str, Any] = {"products_s": round(median(times["products"]), 3)}
    found["products_s_all"] = [round(one, 3) for one in times["products"]]
    for name in MAIN:
        found[name] = {
            "over_products": _ratio(times[name], times["products"]),
            "over_naive": _ratio(times[name], times[f"naive {name}"]),
        }
    del problem
    problem = Problem(FEWER_TOKENS, IDS, dtype)
    steps = {"products": problem.products}
    steps |= {name: lambda name=name: problem.ours(name) for name in NAMES if name not in MAIN}
    times = interleave(steps, FEWER_ROUNDS)
    ratios = {name: _ratio(times[name], times["products"]) for name in steps if name != "products"}
    found["others"] = {name: one for name, one in ratios.items() if name not in SORTING}
    found["sorting"] = {name: one for name, one in ratios.items() if name in SORTING}
    return found


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return round(median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def memory_of(tokens: int, ids: int, dtype_name: str, name: str) -> dict[str, Any]:
    """Measure the peak of one step in this process, in MB beyond the weight gradient."""
    problem = Problem(tokens, ids, getattr(torch, dtype_name))
    small = Problem(16, 4096, getattr(torch, dtype_name))
    small.ours(name)  # what the libraries keep for themselves
    del small
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    problem.ours(name)
    peak = _status("VmHWM") - before - problem.weight.numel() * 4
    return {
        "tokens": tokens, "ids": ids, "dtype": dtype_name, "divergence": name,
        "peak_mb": round(peak / 1e6), "budget_mb": round(chunks.CPU_BUDGET_BYTES / 1e6),
    }  # fmt: skip


def _status(key: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def fresh(*words: str) -> dict[str, Any]:
    """Run a part in a process of its own; its last line is the result."""
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(*words, json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measure everything and print one JSON object."""
    if len(sys.argv) > 1:
        torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
        kind, *words = sys.argv[1:]
        result = (
            time_of(words[0])
            if kind == "time"
            else memory_of(int(words[0]), int(words[1]), words[2], words[3])
        )
        print(json.dumps(result))
        return
    times = {dtype: fresh("time", dtype) for dtype in DTYPES}
    memory = [
        fresh("memory", str(tokens), str(ids), dtype, "forward_kl")
        for dtype in DTYPES
        for tokens, ids in SIZES
    ]
    memory += [fresh("memory", str(TOKENS), str(IDS), "float32", name) for name in ("jsd", "hrl")]
    memory += [fresh("memory", str(TOKENS), str(IDS), "float32", "alpha_divergence")]
    print_result(
        {
            "benchmark": "loss",
            "shape": {"tokens": TOKENS, "student": STUDENT, "teacher": TEACHER, "ids": IDS},
            "threads": min(2, len(os.sched_getaffinity(0))),
            "time": times,
            "memory": memory,
            "wanted": {
                "over_products": WANTED,
                "over_naive": 1.0,
                "peak_mb": "<= 400, and <= budget_mb + 10 %",
            },
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
