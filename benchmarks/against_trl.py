"""This system against TRL's trainers on a CPU, off-policy and on-policy.

The same random models (`_models`), rows, lengths, loss, precision and cores, in turns: each round
of each side is a fresh set of processes, its first steps are discarded, figures are medians of the
rest. Ratios are of trained tokens a second. TRL runs as fast as it can: gradient checkpointing off
(its default makes its generation several times slower).

    off-policy   forward KL on the rows' answers: GKDTrainer with lmbda 0, under this system's
                 settings of the C library's allocator (`engines.ENVIRONMENT`), which make it faster
                 too, and under the library's own, as it is mostly used. `kdflow_lab_cached` takes
                 the teacher's hidden states from a cache, as every epoch but the first does; with
                 `kdflow_lab_turns` teacher and student take turns, each on all cores
    on-policy    forward KL on 64 new tokens that the student writes: GKDTrainer with lmbda 1, and
                 DistillationTrainer. Here strictly on-policy (`kdflow_lab`), as TRL is, and with
                 answers of weights one step old, written while the students learn
                 (`kdflow_lab_stale_1`), which TRL's two trainers cannot do.

Off-policy, one step on one batch must give both sides the same loss, or nothing is reported.
On-policy, answers are drawn at random, so there it is the count of trained tokens that is compared.

Memory is the largest summed PSS of all processes of a side over what they take before the first
step, both models' weights included as a whole: TRL's process reads all of them first, and here,
where the student is not loaded yet, the files' sizes are added (not its copies). What bounds it:
products. TRL runs heads on every position of prompt, answer and padding, twice in full logits; here
they run on answers alone, in chunks. On-policy, decoding is about half of the step.

    .venv/bin/python benchmarks/against_trl.py --cases on_policy --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import _trl
from _common import machine, print_result
from _memory import Memory
from _models import make_rows, save_models

import kdflow_lab as kd

LR = 1e-5
DISCARDED = 2
SAME_LOSS = 1e-3
"""Largest relative difference of the two sides' losses on the same batch."""
CASES = {"off_policy": ("gkd",), "on_policy": ("gkd", "distillation")}
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "off_policy": {
        "kdflow_lab": {},
        "kdflow_lab_turns": {"depth": 0, "threads": machine()["cores"]},
        "kdflow_lab_cached": {"cache": True},
    },
    "on_policy": {
        "kdflow_lab": {"max_staleness": 0},
        "kdflow_lab_stale_1": {"max_staleness": 1},
    },
}
"""By case, our sides and their options; `threads` is the lab's."""
PHASES = ("rollout_wait_s", "rollout_s", "sync_s", "teacher_wait_s", "teacher_busy_s", "step_s")


class Sides:
    """Both sides on the same models and rows."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        """Write models and rows."""
        self.args, self.folder = args, folder
        self.teacher, self.student = save_models(folder)
        self.rows = make_rows(args.batch_size * (args.steps + 1))

    def ours(self, case: str, options: dict[str, Any]) -> dict[str, Any]:
        """One round of this system; rows that come from a cache are captured before."""
        args = self.args
        options = dict(options)
        lab_options = self.lab_options
        lab_options["threads"] = options.pop("threads", lab_options["threads"])
        common: dict[str, Any] = {
            "loss": "forward_kl",
            "kd_ratio": 1.0,
            "lr": LR,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "batch_size": args.batch_size,
            "micro_batch_tokens": args.micro_batch_tokens,
            "max_length": 512,
            "checkpoint_minutes": None,
            **options,
        }
        if case == "on_policy":
            common |= {
                "on_policy": True,
                "max_new_tokens": args.new_tokens,
                "log_rollouts": 0,  # TRL keeps no answers
            }
        with tempfile.TemporaryDirectory(dir=self.folder) as runs, Memory() as memory:
            lab = kd.Lab(self.teacher, self.student, device="cpu", dir=runs, **lab_options)
            with memory.inherited(), lab:
                loaded = memory.with_models(self.teacher, self.student)
                if options.get("cache"):
                    lab.capture(self.rows, max_length=512)
                batch = self.rows[: args.batch_size]
                first = lab.distill(**common, data=batch, steps=1).wait()
                run = lab.distill(**common, data=self.rows, steps=args.steps).wait()
        steps = [record for record in run.records if record["step"] > DISCARDED]
        return {
            "first_loss": first.records[0]["loss"],
            "step_s": [record["step_s"] for record in steps],
            "tokens": [record["tokens"] for record in steps],
            "over_loaded_bytes": memory.peak_bytes - loaded,
            "phases": {
                name: statistics.median(record[name] for record in steps)
                for name in PHASES
                if name in steps[0]
            },
        }

    @property
    def lab_options(self) -> dict[str, Any]:
        """How the lab is started."""
        args = self.args
        options: dict[str, Any] = {"threads": args.threads or "auto"}
        if args.rollout_backend:
            options["rollout_backend"] = args.rollout_backend
        if args.teacher_backend:
            options["teacher_backend"] = args.teacher_backend
        return options

    def theirs(self, case: str, trainer: Any, *, keeps_memory: bool = True) -> dict[str, Any]:
        """One round of a trainer of TRL."""
        args = self.args
        on_policy = case == "on_policy"
        common: dict[str, Any] = {
            "trainer": trainer,
            "teacher": str(self.teacher),
            "student": str(self.student),
            "batch_size": args.batch_size,
            "lr": LR,
            "max_length": 512,
            "lmbda": float(on_policy),
            "max_new_tokens": args.new_tokens,
            "threads": machine()["cores"],
            "keeps_memory": keeps_memory,
        }
        first = None
        if not on_policy and keeps_memory:
            batch = self.rows[: args.batch_size]
            first = _trl.measure(_trl.TrlRun(**common, rows=self._tokens(batch), steps=1)).loss[0]
        rows = self.rows if on_policy else self._tokens(self.rows)
        run = _trl.measure(_trl.TrlRun(**common, rows=rows, steps=args.steps))
        return {
            "first_loss": first,
            "step_s": run.step_s[DISCARDED:],
            "tokens": run.tokens[DISCARDED:],
            "over_loaded_bytes": run.peak_bytes - run.loaded_bytes,
            "versions": run.versions,
        }

    def _tokens(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as this system tokenizes them."""
        from kdflow_lab.data import sources
        from kdflow_lab.data.tokens import tokenize
        from kdflow_lab.load import load_tokenizer

        table, _ = tokenize(sources.load(rows), load_tokenizer(str(self.student)), max_length=512)
        return _trl.token_rows(table, range(len(table)))


def tokens_per_s(rounds: list[dict[str, Any]]) -> float:
    """Trained tokens a second: the median step's, so that one that was disturbed does not count."""
    return statistics.median(
        tokens / seconds
        for one in rounds
        for tokens, seconds in zip(one["tokens"], one["step_s"], strict=True)
    )


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all steps of all rounds."""
    found = {
        "trained_tokens_per_s": round(tokens_per_s(rounds), 1),
        "step_s": round(statistics.median(s for one in rounds for s in one["step_s"]), 3),
        "tokens_a_step": statistics.mean(t for one in rounds for t in one["tokens"]),
        "over_loaded_mb": round(max(one["over_loaded_bytes"] for one in rounds) / 1e6),
        "first_loss": rounds[0]["first_loss"],
    }
    if "phases" in rounds[0]:
        found["phases"] = {name: round(s, 3) for name, s in rounds[-1]["phases"].items()}
    return found


def compare(case: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures of one case; of other work than the same there are none.

    Raises:
        SystemExit: The losses of the same batch differ.
    """
    said = {name: summary(found) for name, found in rounds.items()}
    ours = said["kdflow_lab"]
    for name, other in said.items():
        if other["first_loss"] is None:  # it has its own draws, or is a side that was compared
            continue
        if case == "off_policy" and abs(other["first_loss"] / ours["first_loss"] - 1) > SAME_LOSS:
            raise SystemExit(f"It is not the same work: {name}'s loss differs. {said}")
    times = {
        our: {
            name: {
                "faster": round(
                    said[our]["trained_tokens_per_s"] / other["trained_tokens_per_s"], 2
                ),
                "by_round": [
                    round(tokens_per_s([a]) / tokens_per_s([b]), 2)
                    for a, b in zip(rounds[our], rounds[name], strict=True)
                ],
                "memory": round(said[our]["over_loaded_mb"] / max(1, other["over_loaded_mb"]), 3),
            }
            for name, other in said.items()
            if name.startswith("trl")
        }
        for our in OURS[case]
    }
    return {**said, "ratios": times}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help=f"{DISCARDED} are discarded")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=None, help="of each engine")
    parser.add_argument("--rollout-backend", default=None)
    parser.add_argument("--teacher-backend", default=None)
    args = parser.parse_args()
    if reason := _trl.available():
        print_result({"benchmark": "against_trl", "skipped": reason})
        return 0
    result: dict[str, Any] = {"benchmark": "against_trl", **vars(args)}
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as folder:
        sides = Sides(args, Path(folder))
        for case in args.cases:
            rounds: dict[str, list[dict[str, Any]]] = {}
            for number in range(args.rounds):
                for name, options in OURS[case].items():
                    rounds.setdefault(name, []).append(sides.ours(case, options))
                for trainer in CASES[case]:
                    measured = sides.theirs(case, trainer)
                    rounds.setdefault(f"trl_{trainer}", []).append(measured)
                if case == "off_policy":
                    measured = sides.theirs(case, "gkd", keeps_memory=False)
                    rounds.setdefault("trl_gkd_own_allocator", []).append(measured)
                print(f"{case}, round {number + 1}:", compare(case, rounds), flush=True)
            result[case] = compare(case, rounds)
            result["versions"] = rounds["trl_gkd"][0]["versions"]
    print_result({**result, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
