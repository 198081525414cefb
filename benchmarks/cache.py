"""A step whose teacher rows come from the cache: over a bare student loop, and over one without.

One lab captures the rows of some steps, then trains on them from the cache, again and again; in
between this process takes the same steps in the bare loop of `student_step`, with as many threads,
while the engines rest. One run without the cache says what an epoch costs that asks the teacher.
First steps are discarded; figures are medians.

What bounds it: the student's matrix products. What the cache adds is a hash of the row's token ids,
one copy of its rows, and an empty request to the teacher.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import machine, print_result
from _models import make_rows, save_models
from student_step import bare_loop, make_steps

import kdflow_lab as kd
from kdflow_lab.losses import Head

DISCARDED = 2
BATCH = 8


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help=f"{DISCARDED} are discarded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as folder:
        teacher, student = save_models(Path(folder))
        rows = make_rows(BATCH * args.steps)
        options: dict[str, Any] = {
            "data": rows,
            "loss": "forward_kl",
            "kd_ratio": 1.0,
            "lr": 1e-5,
            "batch_size": BATCH,
            "micro_batch_tokens": 2048,
            "max_length": 512,
            "steps": args.steps,
            "checkpoint_minutes": None,
        }

        def steps_of(run: kd.Run) -> list[dict[str, Any]]:
            return [record for record in run.records if record["step"] > DISCARDED]

        bare = bare_loop(student, Head.from_pretrained(teacher, dtype=torch.float32))
        torch.set_num_threads(machine()["cores"])
        batches = make_steps(teacher, student, args.steps, 1)
        with kd.Lab(teacher, student, device="cpu", dir=f"{folder}/runs") as lab:
            plain = steps_of(lab.distill(**options).wait())
            captured = lab.capture(rows, max_length=512)
            cached: list[dict[str, Any]] = []
            alone: list[float] = []
            for _ in range(args.rounds):
                cached += steps_of(lab.distill(**options, cache=True).wait())
                for number, batch in enumerate(batches):
                    start = time.perf_counter()
                    bare(batch)
                    if number >= DISCARDED:
                        alone.append(time.perf_counter() - start)
    step_s = median(record["step_s"] for record in cached)
    print_result(
        {
            "benchmark": "cache",
            **vars(args),
            "bytes_per_token": captured.bytes_per_token,
            "captured_tokens": captured.tokens,
            "capture_s": round(captured.seconds, 2),
            "teacher_step_s": round(median(record["step_s"] for record in plain), 3),
            "cached_step_s": round(step_s, 3),
            "bare_step_s": round(median(alone), 3),
            "over_bare": round(step_s / median(alone), 3),
            "faster_than_asking": round(median(r["step_s"] for r in plain) / step_s, 2),
            "teacher_busy_s": sum(record["teacher_busy_s"] for record in cached),
            "cached": min(record["cached"] for record in cached),
            "wanted": {"over_bare": "<= 1.1", "teacher_busy_s": 0},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
