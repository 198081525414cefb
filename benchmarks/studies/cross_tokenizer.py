"""What does another tokenizer cost, and which algorithm loses least? One fair table.

The teacher's sampled answers to the same prompts train, for the same steps:

    same         zoo/student, which has the teacher's tokenizer (vanilla_kd, forward KL)
    byte_prefix  zoo/student-unigram, which has another one: the default algorithm
    simple_ctkd  the same, by KDFlow's algorithm (its errors mended)
    sft          the same, by cross-entropy on the answers, without a teacher beside it

Each takes its best learning rate of one grid, chosen on validation rows with one seed, and is then
trained with every seed. A seed draws its own prompts, answers and order. Figures are of held-out
test rows; the intervals are paired bootstraps over rows of the seeds' mean difference.

    .venv/bin/python benchmarks/studies/cross_tokenizer.py --prompts 4000 --steps 400
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from kd_vs_sft import by_kind, by_row, differences

import kdflow_lab as kd
from kdflow_lab.evaluate.bootstrap import interval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import machine, print_result

WAYS = ("same", "byte_prefix", "simple_ctkd", "sft")
BATCH_SIZE = 64
KD_RATIOS = {"same": 1.0, "sft": 0.0}
"""Between tokenizers some tokens have no row of the teacher: they learn from the answers alone."""


class Study:
    """Two labs of one teacher, and the answers that it gave."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start both labs, and let the teacher answer."""
        self.args = args
        self.same = kd.Lab(teacher="zoo/teacher", student="zoo/student", dir=args.dir)
        self.across = kd.Lab(teacher="zoo/teacher", student="zoo/student-unigram", dir=args.dir)
        self.data = {
            seed: self.same.rollouts(
                "zoo/tasks",
                model="teacher",
                split="train",
                rows=args.prompts,
                seed=100 + seed,
                temperature=1.0,
                max_new_tokens=24,
            )
            for seed in args.seeds
        }

    def train(self, way: str, *, lr: float, seed: int) -> kd.Run:
        """Train one student to its end."""
        lab = self.same if way == "same" else self.across
        run = lab.distill(
            data=self.data[seed],
            algorithm="vanilla_kd" if way == "same" else way,
            kd_ratio=KD_RATIOS.get(way, self.args.kd_ratio),
            loss="forward_kl",
            lr=lr,
            steps=self.args.steps,
            batch_size=BATCH_SIZE,
            seed=seed,
            name=f"{way}-{lr:g}-seed{seed}-{time.time_ns()}",
        )
        return run.wait()

    def evaluated(self, way: str, run: kd.Run, split: str) -> kd.Evaluation:
        """Score a run's student."""
        lab = self.same if way == "same" else self.across
        rows, longest = self.args.rows, 40
        return lab.evaluate("zoo/tasks", model=run, split=split, rows=rows, max_new_tokens=longest)

    def of_way(self, way: str) -> tuple[dict[str, Any], list[kd.Evaluation]]:
        """Choose the learning rate, train with every seed, and score."""
        args, first = self.args, self.args.seeds[0]
        runs, scores = {}, {}
        for lr in args.lrs:
            runs[lr] = self.train(way, lr=lr, seed=first)
            scores[lr] = self.evaluated(way, runs[lr], "validation")
            print(f"{way} lr {lr:g}: {scores[lr]}", flush=True)
        best = max(args.lrs, key=lambda lr: scores[lr].exact_match)
        others = [self.train(way, lr=best, seed=seed) for seed in args.seeds[1:]]
        tests = [self.evaluated(way, run, "test") for run in [runs[best], *others]]
        metrics = runs[best].metrics
        return {
            "lr": best,
            "grid": {f"{lr:g}": score.to_dict() for lr, score in scores.items()},
            "exact_match": float(by_row(tests, "correct").mean()),
            "exact_match_interval": interval(by_row(tests, "correct"))[1:],
            "exact_match_seeds": [one.exact_match for one in tests],
            "kl": float(np.mean([one.kl for one in tests])),
            "exact_match_by_kind": by_kind(tests, "exact_match"),
            "step_s": float(metrics["step_s"].median()),
            "aligned": float(metrics["aligned"].mean()) if "aligned" in metrics else 1.0,
        }, tests


def main() -> None:
    """Parse the options, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=500, help="held-out rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lrs", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--kd-ratio", type=float, default=0.9, help="between tokenizers")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--dir", default="out/studies/cross_tokenizer", help="folder of the runs")
    args = parser.parse_args()
    start = time.monotonic()
    study = Study(args)
    result: dict[str, Any] = {
        name: getattr(args, name) for name in ("prompts", "steps", "rows", "seeds", "kd_ratio")
    }
    tests: dict[str, list[kd.Evaluation]] = {}
    try:
        for way in args.ways:
            result[way], tests[way] = study.of_way(way)
            print(f"{way}: {json.dumps(result[way])}", flush=True)
    finally:
        study.same.close()
        study.across.close()
    for other in set(tests) - {"byte_prefix"} if "byte_prefix" in tests else ():
        result[f"byte_prefix_minus_{other}"] = differences(tests["byte_prefix"], tests[other])
    result["seconds"] = time.monotonic() - start
    print_result({"study": "cross_tokenizer", **result, "machine": machine()})


if __name__ == "__main__":
    main()
