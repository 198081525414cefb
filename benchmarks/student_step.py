"""A student's step as this package takes it, over the same step of a bare loop.

The teacher's rows lie in memory, so that only the student works, with all cores: what an epoch from
a cache of hidden states is like. Both sides run the same model on the same packed rows with the
same chunked loss. The bare loop is a page of plain PyTorch: forward, loss, backward, clipping,
AdamW. The package's step is the one that runs take (`distill_step`): FSDP2 over one process, the
feed, the sums over ranks, what is measured for the metrics. Steps of both alternate, so that a busy
machine slows both; the first are discarded, figures are medians.

What bounds it: matrix products. What the package adds is FSDP2's bookkeeping, and its copies of the
parameters where they would be gathered.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from _common import machine, print_result
from _models import make_rows, save_models
from torch.distributed.device_mesh import init_device_mesh

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.attention import decode, use_packed_attention
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import sources
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.engines import ENVIRONMENT
from kdflow_lab.load import load_model, load_tokenizer
from kdflow_lab.losses import Head, chunked_kd_loss
from kdflow_lab.step import distill_step
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.optimizer import make_optimizer
from kdflow_lab.teacher.transformers import TransformersTeacher

ADAMW: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.98), "weight_decay": 0.0}
Step = list[tuple[MicroBatch, torch.Tensor]]
"""The micro-batches of a step, and the teacher's rows of each."""


class Kept:
    """The teacher's rows of a micro-batch, with the methods of rows in the ring."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def release(self) -> None:
        """There is no slot to give back."""


class FromMemory:
    """Micro-batches with rows that are there already, in place of the teacher's feed."""

    def __init__(self) -> None:
        self.step: Iterator[tuple[MicroBatch, torch.Tensor]] = iter(())

    def next(self) -> tuple[MicroBatch, Kept]:
        """See `TeacherFeed.next`."""
        batch, rows = next(self.step)
        return batch, Kept(rows)

    def refill(self) -> None:
        """There is nobody to ask."""


def make_steps(teacher: Path, student: Path, steps: int, micro_batches: int) -> list[Step]:
    """Tokenize rows, eight a step, and run the teacher on them."""
    rows = make_rows(8 * steps)
    table, _ = tokenize(sources.load(rows), load_tokenizer(str(student)), max_length=512)
    model = TransformersTeacher(str(teacher))
    made: list[Step] = []
    size = 8 // micro_batches
    for number in range(steps):
        step: Step = []
        for index in range(micro_batches):
            first = 8 * number + size * index
            batch = pack(table, range(first, first + size), step=number, index=index)
            out = torch.empty(len(batch.labels), model.hidden_size)
            model.hidden_states(batch.input_ids, batch.cu_seqlens, batch.rows, out)
            step.append((batch, out))
        made.append(step)
    return made


def bare_loop(student: Path, teacher_head: Head) -> Callable[[Step], float]:
    """A loop that knows one process and one model."""
    model: Any = load_model(str(student)).train()
    use_packed_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW, fused=True)

    def take(step: Step) -> float:
        tokens = sum(len(batch.labels) for batch, _ in step)
        total = 0.0
        optimizer.zero_grad(set_to_none=True)
        for batch, teacher_rows in step:
            hidden = decode(
                model.get_decoder(), batch.input_ids, batch.cu_seqlens, packed=True, pad_id=0
            )
            loss = chunked_kd_loss(
                hidden.index_select(0, batch.rows), Head.of(model), teacher_rows, teacher_head,
                batch.labels, num_valid_tokens=tokens,
            ).loss  # fmt: skip
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    return take


def package_loop(student: Path, teacher_head: Head, mesh: Any) -> Callable[[Step], float]:
    """This package's step over one rank."""
    config = DistillConfig.parse(algorithm="vanilla_kd", loss="forward_kl", kd_ratio=1.0, **ADAMW)
    model = Student(str(student), config=config, mesh=mesh, vocab_size=None)
    optimizer = make_optimizer(model.model, config)
    algorithm = make_algorithm(config)
    feed: Any = FromMemory()

    def take(step: Step) -> float:
        feed.step = iter(step)
        return distill_step(
            model, optimizer, algorithm, feed, teacher_head, micro_batches=len(step),
            num_valid_tokens=sum(len(batch.labels) for batch, _ in step), max_grad_norm=1.0,
        ).loss  # fmt: skip

    return take


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[Any]:
    """A process group of this process, as a lab's only student has it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Alternate both loops and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--discard", type=int, default=3)
    parser.add_argument("--micro-batches", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--threads", type=int, default=machine()["cores"])
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        # as in an engine; the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as name, alone(Path(name)) as mesh:
        teacher, student = save_models(Path(name))
        steps = make_steps(teacher, student, args.steps + args.discard, args.micro_batches)
        teacher_head = Head.from_pretrained(teacher, dtype=torch.float32)
        loops = {
            "bare": bare_loop(student, teacher_head),
            "package": package_loop(student, teacher_head, mesh),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        cpu: dict[str, list[float]] = {name: [] for name in loops}
        losses: dict[str, list[float]] = {name: [] for name in loops}
        for number, step in enumerate(steps):
            for side in (list(loops), list(loops)[::-1])[number % 2]:
                start, worked = time.perf_counter(), time.process_time()
                losses[side].append(loops[side](step))
                if number >= args.discard:
                    seconds[side].append(time.perf_counter() - start)
                    cpu[side].append(time.process_time() - worked)
    apart = max(abs(a / b - 1) for a, b in zip(losses["bare"], losses["package"], strict=True))
    ratios, cpu_ratios = (
        [ours / bare for ours, bare in zip(one["package"], one["bare"], strict=True)]
        for one in (seconds, cpu)
    )
    print_result(
        {
            "benchmark": "student_step",
            **vars(args),
            "bare_s": round(median(seconds["bare"]), 4),
            "package_s": round(median(seconds["package"]), 4),
            "over_bare": round(median(ratios), 3),
            "ratios": [round(one, 3) for one in sorted(ratios)],
            "cpu_over_bare": round(median(cpu_ratios), 3),
            "losses_apart": apart,
            "wanted": {"over_bare": "<= 1.1"},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
