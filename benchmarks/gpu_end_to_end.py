"""This system against TRL's GKDTrainer: the same models, tokens, loss and precision.

The whole command on a host with a GPU, where the models are hub ids or folders:

    .venv/bin/python benchmarks/gpu_end_to_end.py
        --teacher Qwen/Qwen3-8B --student Qwen/Qwen3-0.6B --data my.jsonl --precision bfloat16

Without arguments it distils the zoo's models, at toy size, on whatever the host has. Both sides
take forward KL steps (no cross-entropy) on the same rows: this system's teacher and student in
engines of their own, TRL's in one process. They run in turn, each round in fresh processes; the
first steps of each run are discarded; figures are medians.

Each side also takes one step on one batch of the same rows: the two losses must be equal, or it is
not the same work and nothing is reported. MS-SWIFT takes part where its `swift` command is found or
named (`--swift`; it needs an environment of its own). It renders the rows with its own template, so
its loss is printed and not compared.

What bounds it: with toy models, the fixed cost of a step. With large ones TRL spends its time on
heads of prompt and padding positions, this system on whichever of teacher and student is slower.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import _swift
import _trl
from _common import machine, print_result
from _memory import Memory

import kdflow_lab as kd

LR = 1e-5
DISCARDED = 3
SAME_LOSS = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest relative difference of the two sides' losses on the same batch."""


def ours(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """One round of this system: the loss on one batch, then the timed steps."""
    common = {
        "data": args.data,
        "loss": "forward_kl",
        "kd_ratio": 1.0,
        "lr": LR,
        "scheduler": "constant",
        "warmup_ratio": 0.0,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "micro_batch_tokens": max(args.micro_batch_rows * args.max_length, args.max_length),
        "micro_batch_rows": args.micro_batch_rows,
        "precision": args.precision,
        "checkpoint_minutes": None,
    }
    with tempfile.TemporaryDirectory(prefix="kdflow-bench-") as folder, Memory() as memory:
        lab = kd.Lab(
            args.teacher,
            args.student,
            device=device,
            teacher_backend=args.teacher_backend,
            teacher_dtype=args.precision,
            dir=folder,
        )
        with memory.inherited(), lab:
            loaded = memory.now()
            first = lab.distill(**common, rows=args.batch_size, steps=1).wait()
            run = lab.distill(**common, rows=args.rows, steps=args.steps).wait()
            (started,) = [event for event in run.events if event["event"] == "started"]
    steps = [record for record in run.records if record["step"] > DISCARDED]
    return {
        "first_loss": first.records[0]["loss"],
        "step_s": [record["step_s"] for record in steps],
        "tokens": [record["tokens"] for record in steps],
        "peak_bytes": memory.peak_bytes,
        "loaded_bytes": loaded,
        "gpu_bytes": max(record["memory_bytes"] for record in steps) if device == "cuda" else 0,
        "backend": started["backend"],
    }


def theirs(
    args: argparse.Namespace,
    device: str,
    first_rows: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """One round of TRL, likewise."""
    common = trl_options(args, device)
    first = _trl.measure(_trl.TrlRun(**common, rows=first_rows, steps=1))
    run = _trl.measure(_trl.TrlRun(**common, rows=rows, steps=args.steps))
    return {
        "first_loss": first.loss[0],
        "step_s": run.step_s[DISCARDED:],
        "tokens": run.tokens[DISCARDED:],
        "peak_bytes": run.peak_bytes,
        "loaded_bytes": run.loaded_bytes,
        "gpu_bytes": run.gpu_bytes,
        "versions": run.versions,
    }


def swifts(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """One round of MS-SWIFT on the rows as messages."""
    from kdflow_lab.data import sources

    rows: Any = sources.load(args.data, split="train", rows=args.rows, seed=42)
    run = _trl.TrlRun(
        **trl_options(args, device),
        rows=[{"messages": row["messages"]} for row in rows],
        steps=args.steps,
    )
    found = _swift.measure(args.swift, run, args.swift_args.split())
    return {
        "first_loss": found.loss[0],
        "step_s": found.step_s[DISCARDED:],
        "tokens": [],
        "peak_bytes": found.peak_bytes,
        "loaded_bytes": None,
        "gpu_bytes": found.gpu_bytes,
    }


def trl_options(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """What all runs of the other sides have in common."""
    return {
        "teacher": kd_path(args.teacher),
        "student": kd_path(args.student),
        "batch_size": args.batch_size,
        "micro_batch_rows": args.micro_batch_rows,
        "lr": LR,
        "max_length": args.max_length,
        "bf16": args.precision == "bfloat16",
        "teacher_dtype": args.precision,
        "device": device,
        "threads": machine()["cores"],
    }


def kd_path(model: str) -> str:
    """The folder of a model, as a lab finds it."""
    from kdflow_lab.hub import resolve_model

    return resolve_model(model)


def same_tokens(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows as this system tokenizes them, for TRL: (the first batch's, all)."""
    from kdflow_lab.data import sources
    from kdflow_lab.data.tokens import tokenize
    from kdflow_lab.load import load_tokenizer

    def made(rows: int) -> list[dict[str, Any]]:
        table, _ = tokenize(
            sources.load(args.data, split="train", rows=rows, seed=42),
            load_tokenizer(kd_path(args.student)),
            max_length=args.max_length,
            train_turns="last",
        )
        return _trl.token_rows(table, range(len(table)))

    return made(args.batch_size), made(args.rows)


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all steps of all rounds."""
    seconds = [one for measured in rounds for one in measured["step_s"]]
    tokens = [one for measured in rounds for one in measured["tokens"]]
    over = [one["peak_bytes"] - one["loaded_bytes"] for one in rounds if one["loaded_bytes"]]
    return {
        "step_s": round(statistics.median(seconds), 4),
        "trained_tokens_per_s": round(sum(tokens) / sum(seconds), 1) if tokens else None,
        "peak_mb": round(max(one["peak_bytes"] for one in rounds) / 1e6),
        "over_loaded_mb": round(max(over) / 1e6) if over else None,
        "gpu_mb": round(max(one["gpu_bytes"] for one in rounds) / 1e6),
        "first_loss": rounds[0]["first_loss"],
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", default="zoo/teacher")
    parser.add_argument("--student", default="zoo/student")
    parser.add_argument("--data", default="zoo/tasks", help="rows with one answer each")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--steps", type=int, default=13, help=f"{DISCARDED} are discarded")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-rows", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--precision", choices=list(SAME_LOSS), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--teacher-backend", default="auto")
    parser.add_argument("--swift", default=shutil.which("swift"), help="MS-SWIFT's command")
    parser.add_argument("--swift-args", default="", help="more words for it, as --template qwen3")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    args = parse()
    if reason := _trl.available():
        print_result({"benchmark": "gpu_end_to_end", "skipped": reason})
        return 0
    device = args.device
    if device == "auto":
        device = "cuda" if Path("/dev/nvidia0").exists() else "cpu"
    first_rows, rows = same_tokens(args)
    rounds: dict[str, list[dict[str, Any]]] = {"kdflow_lab": [], "trl_gkd": []}
    for number in range(args.rounds):
        rounds["kdflow_lab"].append(ours(args, device))
        rounds["trl_gkd"].append(theirs(args, device, first_rows, rows))
        if args.swift:
            rounds.setdefault("ms_swift_gkd", []).append(swifts(args, device))
        print(f"round {number + 1}: { ({name: summary(found) for name, found in rounds.items()}) }")
    ours_said, theirs_said = summary(rounds["kdflow_lab"]), summary(rounds["trl_gkd"])
    apart = abs(ours_said["first_loss"] / theirs_said["first_loss"] - 1)
    if apart > SAME_LOSS[args.precision]:
        print(f"It is not the same work: the losses of one batch differ by {apart:.2%}.")
        return 1
    print_result(
        {
            "benchmark": "gpu_end_to_end",
            "device": device,
            "teacher_backend": rounds["kdflow_lab"][0]["backend"],
            **{name: getattr(args, name) for name in ("teacher", "student", "precision")},
            **{name: getattr(args, name) for name in ("batch_size", "micro_batch_rows", "rounds")},
            "kdflow_lab": ours_said,
            "trl_gkd": theirs_said,
            "ms_swift_gkd": summary(rounds["ms_swift_gkd"]) if args.swift else "not installed",
            "times_faster": {
                name: round(summary(found)["step_s"] / ours_said["step_s"], 2)
                for name, found in rounds.items()
                if name != "kdflow_lab"
            },
            "losses_apart": apart,
            "versions": rounds["trl_gkd"][0]["versions"],
            "machine": machine(),
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
