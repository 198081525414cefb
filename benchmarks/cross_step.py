"""A step between two tokenizers over a step with one: what the byte-prefix target costs.

Two labs of the zoo's teacher, one with the student of its tokenizer (`vanilla_kd`), one with the
student of another (`byte_prefix`), each with one student worker on one thread. Runs on the same
rows alternate; the first steps of each are discarded. The other student has a smaller vocabulary
and writes an answer in more tokens, so the ratio of a response token stands beside that of a step.
"""

from __future__ import annotations

import tempfile
from statistics import median

from _common import machine, print_result

import kdflow_lab as kd

ROUNDS, STEPS, DISCARDED = 3, 60, 10
OPTIONS = {"rows": 2000, "batch_size": 64, "steps": STEPS, "lr": 1e-3, "kd_ratio": 0.9}


def step_of(lab: kd.Lab, algorithm: str) -> tuple[float, float]:
    """Seconds of a step, and of a response token, medians of a run."""
    metrics = lab.distill(algorithm=algorithm, **OPTIONS).wait().metrics.iloc[DISCARDED:]
    seconds = metrics["step_s"].to_numpy()
    return float(median(seconds)), float(median(seconds / metrics["tokens"].to_numpy()))


def main() -> None:
    """Measure, and print one JSON object."""
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as folder:
        labs = {
            "vanilla_kd": kd.Lab("zoo/teacher", "zoo/student", dir=folder, threads=1),
            "byte_prefix": kd.Lab("zoo/teacher", "zoo/student-unigram", dir=folder, threads=1),
        }
        try:
            rounds = [
                {name: step_of(lab, name) for name, lab in labs.items()} for _ in range(ROUNDS)
            ]
        finally:
            for lab in labs.values():
                lab.close()
    ratios = [
        [one["byte_prefix"][part] / one["vanilla_kd"][part] for one in rounds] for part in (0, 1)
    ]
    print_result(
        {
            "benchmark": "cross_step",
            "step_ms": {
                name: round(1e3 * median(one[name][0] for one in rounds), 1) for name in labs
            },
            "step_over_same": round(median(ratios[0]), 3),
            "token_over_same": round(median(ratios[1]), 3),
            "rounds": [round(one, 3) for one in ratios[0]],
            "wanted": 1.5,
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
