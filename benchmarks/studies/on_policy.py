"""Does a student that was warmed up off-policy gain more on-policy? One fair table.

A student learns the teacher's distributions (forward KL) on answers that the teacher sampled. From
that checkpoint it goes on for the same number of steps of as many rows:

    off_policy   with forward KL on those same answers
    on_policy    with reverse KL on what it writes itself to those same prompts
    on_policy_fk likewise with forward KL: what is due to the loss, and what to the samples

Each takes its best learning rate of one grid, chosen on validation rows with one seed, and is then
trained with every seed. A seed draws its own prompts, answers, warm-up and order. Figures are of
held-out test rows; the intervals are paired bootstraps over rows of the seeds' mean difference.

    .venv/bin/python benchmarks/studies/on_policy.py --prompts 500 --warm-up 200 --steps 100
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from kd_vs_sft import by_kind, by_row, kl_by_row

import kdflow_lab as kd
from kdflow_lab.evaluate.bootstrap import interval, paired_interval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import machine, print_result

WAYS: dict[str, dict[str, Any]] = {
    "off_policy": {"loss": "forward_kl"},
    "on_policy": {"loss": "reverse_kl", "on_policy": True, "max_new_tokens": 24},
    "on_policy_fk": {"loss": "forward_kl", "on_policy": True, "max_new_tokens": 24},
}
BATCH_SIZE = 64
WARM_UP_LR = 4e-3


class Study:
    """A lab, and each seed's prompts with the answers that the teacher gave."""

    def __init__(self, lab: kd.Lab, args: argparse.Namespace) -> None:
        """Let the teacher answer."""
        self.lab, self.args = lab, args
        self.warm: dict[int, kd.Run] = {}
        self.data: dict[int, Any] = {}

    def warm_up(self, seed: int) -> kd.Run:
        """Train a seed's student off-policy, once."""
        if seed not in self.warm:
            self.data[seed] = self.lab.rollouts(
                "zoo/tasks",
                model="teacher",
                split="train",
                rows=self.args.prompts,
                seed=100 + seed,
                temperature=1.0,
                max_new_tokens=24,
            )
            run = self.lab.distill(
                data=self.data[seed],
                kd_ratio=1.0,
                lr=WARM_UP_LR,
                steps=self.args.warm_up,
                batch_size=BATCH_SIZE,
                seed=seed,
                name=f"warm-seed{seed}-{time.time_ns()}",
            )
            self.warm[seed] = run.wait()
        return self.warm[seed]

    def go_on(self, way: str, *, lr: float, seed: int) -> kd.Run:
        """Take the further steps of one way from a seed's checkpoint."""
        run = self.warm_up(seed).fork(
            **WAYS[way],
            lr=lr,
            steps=self.args.warm_up + self.args.steps,
            kd_ratio=1.0,
            scheduler="constant",
            warmup_ratio=0.0,
            name=f"{way}-{lr:g}-seed{seed}-{time.time_ns()}",
        )
        return run.wait()

    def evaluated(self, run: kd.Run | str, split: str) -> kd.Evaluation:
        """Score a run's student."""
        rows = self.args.rows
        return self.lab.evaluate("zoo/tasks", model=run, split=split, rows=rows, max_new_tokens=24)

    def of_way(self, way: str) -> tuple[dict[str, Any], list[kd.Evaluation]]:
        """Choose the learning rate, train with every seed, and score."""
        args, first = self.args, self.args.seeds[0]
        runs, scores = {}, {}
        for lr in args.lrs:
            runs[lr] = self.go_on(way, lr=lr, seed=first)
            scores[lr] = self.evaluated(runs[lr], "validation")
            print(f"{way} lr {lr:g}: {scores[lr]}", flush=True)
        best = max(args.lrs, key=lambda lr: scores[lr].exact_match)
        chosen = [runs[best], *(self.go_on(way, lr=best, seed=seed) for seed in args.seeds[1:])]
        tests = [self.evaluated(run, "test") for run in chosen]
        tokens = [int(run.metrics["tokens"].tail(args.steps).sum()) for run in chosen]
        found = {"lr": best, "grid": {f"{lr:g}": one.to_dict() for lr, one in scores.items()}}
        return found | {"trained_tokens": tokens} | described(tests), tests


def described(tests: list[kd.Evaluation]) -> dict[str, Any]:
    """The figures of one way over its seeds."""
    return {
        "exact_match": float(by_row(tests, "correct").mean()),
        "exact_match_interval": interval(by_row(tests, "correct"))[1:],
        "exact_match_seeds": [one.exact_match for one in tests],
        "kl": float(np.mean([one.kl for one in tests])),
        "kl_seeds": [one.kl for one in tests],
        "exact_match_by_kind": by_kind(tests, "exact_match"),
        "kl_by_kind": by_kind(tests, "kl"),
    }


def gains(ours: list[kd.Evaluation], theirs: list[kd.Evaluation]) -> dict[str, Any]:
    """Paired intervals over all rows, and by kind."""
    kinds = ours[0].frame["kind"].to_numpy()
    a, b = by_row(ours, "correct"), by_row(theirs, "correct")
    return {
        "exact_match": paired_interval(a, b)._asdict(),
        "kl": paired_interval(kl_by_row(ours), kl_by_row(theirs))._asdict(),
        "exact_match_by_kind": {
            str(kind): paired_interval(a[kinds == kind], b[kinds == kind])._asdict()
            for kind in sorted(set(kinds))
        },
    }


def main() -> None:
    """Parse the options, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=200, help="steps before the ways part")
    parser.add_argument("--steps", type=int, default=100, help="steps of each way")
    parser.add_argument("--rows", type=int, default=500, help="held-out rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--dir", default="out/studies/on_policy", help="folder of the runs")
    args = parser.parse_args()
    start = time.monotonic()
    names = ("prompts", "warm_up", "steps", "rows", "seeds", "lrs")
    result: dict[str, Any] = {name: getattr(args, name) for name in names}
    tests: dict[str, list[kd.Evaluation]] = {}
    with kd.Lab(teacher="zoo/teacher", student="zoo/student", dir=args.dir) as lab:
        study = Study(lab, args)
        warm = [study.evaluated(study.warm_up(seed), "test") for seed in args.seeds]
        result["warmed_up"] = described(warm)
        print(f"warmed up: {result['warmed_up']['exact_match_seeds']}", flush=True)
        for way in args.ways:
            result[way], tests[way] = study.of_way(way)
            print(f"{way}: {json.dumps(result[way])}", flush=True)
    for way in tests:
        result[f"{way}_minus_warmed_up"] = gains(tests[way], warm)
        if way != "off_policy" and "off_policy" in tests:
            result[f"{way}_minus_off_policy"] = gains(tests[way], tests["off_policy"])
    result["seconds"] = time.monotonic() - start
    print_result({"study": "on_policy", **result, "machine": machine()})


if __name__ == "__main__":
    main()
