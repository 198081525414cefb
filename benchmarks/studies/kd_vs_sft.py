"""Does distillation beat fine-tuning on the teacher's answers, and on gold answers? One fair table.

Three ways to train the same student on the same prompts for the same steps:

    kd           the teacher's distributions (forward KL), on answers that the teacher sampled
    sft_sampled  cross-entropy on those same sampled answers: what is done without gold answers
    sft_gold     cross-entropy on gold answers for the same prompts

Each takes its best learning rate of one grid, chosen on validation rows with one seed, and is then
trained with every seed. A seed draws its own prompts, answers and order. Figures are of held-out
test rows; the intervals are paired bootstraps over rows of the seeds' mean difference.

    .venv/bin/python benchmarks/studies/kd_vs_sft.py --prompts 4000 --steps 400
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import kdflow_lab as kd
from kdflow_lab.evaluate.bootstrap import interval, paired_interval
from kdflow_lab.zoo.tasks import SOFT_KINDS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import machine, print_result

WAYS = ("kd", "sft_sampled", "sft_gold")
BATCH_SIZE = 64


def train(lab: kd.Lab, way: str, data: Any, *, lr: float, steps: int, seed: int) -> kd.Run:
    """Train one student to its end."""
    common = {
        "data": data,
        "lr": lr,
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "seed": seed,
        "name": f"{way}-{lr:g}-seed{seed}-{time.time_ns()}",
    }
    run = (
        lab.distill(loss="forward_kl", kd_ratio=1.0, **common) if way == "kd" else lab.sft(**common)
    )
    return run.wait()


def study(lab: kd.Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Run the whole comparison."""
    gold = {
        seed: kd.zoo.dataset("zoo/tasks", "train", rows=args.prompts, seed=100 + seed)
        for seed in args.seeds
    }
    sampled = {
        seed: lab.rollouts(rows, model="teacher", temperature=1.0, max_new_tokens=24, seed=seed)
        for seed, rows in gold.items()
    }

    def data(way: str, seed: int) -> Any:
        return gold[seed] if way == "sft_gold" else sampled[seed]

    def evaluated(run: kd.Run | str, split: str) -> kd.Evaluation:
        return lab.evaluate("zoo/tasks", model=run, split=split, rows=args.rows, max_new_tokens=24)

    first = args.seeds[0]
    result: dict[str, Any] = {
        "prompts": args.prompts,
        "steps": args.steps,
        "batch_size": BATCH_SIZE,
        "rows": args.rows,
        "seeds": args.seeds,
        "grid": args.lrs,
        "teacher": evaluated("teacher", "test").to_dict(),
        "student_before": evaluated("student", "test").to_dict(),
    }
    tests: dict[str, list[kd.Evaluation]] = {}
    for way in WAYS:
        runs, scores = {}, {}
        for lr in args.lrs:
            run = train(lab, way, data(way, first), lr=lr, steps=args.steps, seed=first)
            runs[lr], scores[lr] = run, evaluated(run, "validation")
            print(f"{way} lr {lr:g}: {scores[lr]}", flush=True)
        best = max(args.lrs, key=lambda lr: scores[lr].exact_match)
        runs_of_seeds = [runs[best]] + [
            train(lab, way, data(way, seed), lr=best, steps=args.steps, seed=seed)
            for seed in args.seeds[1:]
        ]
        tests[way] = [evaluated(run, "test") for run in runs_of_seeds]
        result[way] = {
            "lr": best,
            "grid": {f"{lr:g}": score.to_dict() for lr, score in scores.items()},
            "exact_match": by_row(tests[way], "correct").mean(),
            "exact_match_interval": interval(by_row(tests[way], "correct"))[1:],
            "exact_match_seeds": [one.exact_match for one in tests[way]],
            "kl": float(np.mean([one.kl for one in tests[way]])),
            "kl_seeds": [one.kl for one in tests[way]],
            "agreement": float(np.mean([one.agreement for one in tests[way]])),
            "exact_match_by_kind": by_kind(tests[way], "exact_match"),
            "kl_by_kind": by_kind(tests[way], "kl"),
        }
        print(f"{way}: {json.dumps(result[way])}", flush=True)
    for other in WAYS[1:]:
        result[f"kd_minus_{other}"] = differences(tests["kd"], tests[other])
    return result


def differences(
    ours: list[kd.Evaluation], theirs: list[kd.Evaluation]
) -> dict[str, dict[str, dict[str, float]]]:
    """Paired intervals over all rows, and over the rows with several right answers."""
    soft = ours[0].frame["kind"].isin(SOFT_KINDS).to_numpy()
    found = {}
    for name, rows in (("all", np.ones_like(soft)), ("several_right_answers", soft)):
        a, b = by_row(ours, "correct")[rows], by_row(theirs, "correct")[rows]
        found[name] = {
            "exact_match": paired_interval(a, b)._asdict(),
            "kl": paired_interval(kl_by_row(ours)[rows], kl_by_row(theirs)[rows])._asdict(),
        }
    return found


def by_kind(evaluations: list[kd.Evaluation], figure: str) -> dict[str, float]:
    """Mean over the seeds."""
    frames = [one.by_kind[figure] for one in evaluations]
    return {
        str(kind): float(np.mean([frame[kind] for frame in frames])) for kind in frames[0].index
    }


def by_row(evaluations: list[kd.Evaluation], column: str) -> np.ndarray:
    """Float[rows, seeds]."""
    return np.stack([one.frame[column].to_numpy(dtype=float) for one in evaluations], axis=1)


def kl_by_row(evaluations: list[kd.Evaluation]) -> np.ndarray:
    """Float[rows, seeds], nats a token."""
    return by_row(evaluations, "kl") / by_row(evaluations, "tokens")


def main() -> None:
    """Parse the options, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=500, help="held-out rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--dir", default="out/studies/kd_vs_sft", help="folder of the runs")
    args = parser.parse_args()
    start = time.monotonic()
    with kd.Lab(teacher="zoo/teacher", student="zoo/student", dir=args.dir) as lab:
        result = study(lab, args)
    result["seconds"] = time.monotonic() - start
    print_result({"study": "kd_vs_sft", **result, "machine": machine()})


if __name__ == "__main__":
    main()
