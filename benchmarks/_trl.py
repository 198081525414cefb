"""TRL's trainers as the other side of a comparison: steps on given models and rows, timed.

`measure` runs one trainer in a process of its own and weighs that process and its children.
A run is described by `TrlRun`; the same process, as a script, reads one from standard input and
prints one JSON object last.

What is measured: the seconds from the end of a step to the end of the next, with everything that
TRL does for it (the collator included); the trained tokens of each step, counted in the labels that
the loss gets; the summed PSS of its processes, and on a GPU the allocator's peak.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from _memory import Memory

from kdflow_lab.engines import ENVIRONMENT

SEED = 0


@dataclass(frozen=True, kw_only=True)
class TrlRun:
    """One trainer's run.

    Attributes:
        trainer: `gkd` (GKDTrainer) or `distillation` (DistillationTrainer, always on-policy).
        teacher: Folder of the teacher.
        student: Folder of the student.
        rows: For `gkd`, `messages` each, or the very tokens as `token_rows` makes them; for
            `distillation`, `messages` whose last one is left out.
        steps: Optimizer steps.
        batch_size: Rows of a step.
        micro_batch_rows: Rows that are run at once; None for all of a step.
        lr: Learning rate, constant.
        beta: 0 is the forward KL, 1 the reverse one.
        lmbda: Share of on-policy steps (`gkd`).
        temperature: Of the sampling.
        max_new_tokens: Of an answer that the student writes.
        max_length: Tokens of a row.
        bf16: Compute in bfloat16 (autocast over float32 weights).
        teacher_dtype: Of the teacher's weights.
        gradient_checkpointing: TRL's default is True, which makes its steps slower.
        device: `cpu` or `cuda`.
        threads: CPU threads.
        keeps_memory: With this system's settings of the allocator, under which a step's memory is
            kept for the next one; else with the C library's own, as TRL is mostly used.
    """

    trainer: Literal["gkd", "distillation"] = "gkd"
    teacher: str
    student: str
    rows: list[dict[str, Any]]
    steps: int
    batch_size: int
    micro_batch_rows: int | None = None
    lr: float = 1e-4
    beta: float = 0.0
    lmbda: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = 64
    max_length: int = 2048
    bf16: bool = False
    teacher_dtype: str = "float32"
    gradient_checkpointing: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    keeps_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run came to; lists have an element a step, the first steps included.

    Attributes:
        step_s: Seconds.
        loss: Nats a trained token.
        tokens: Trained tokens.
        loaded_bytes: Summed PSS with both models loaded and read, before the first step.
        peak_bytes: Largest summed PSS.
        gpu_bytes: Largest allocation on the GPU; 0 on a CPU.
        versions: Of TRL and what it stands on.
    """

    step_s: list[float]
    loss: list[float]
    tokens: list[int]
    loaded_bytes: int
    peak_bytes: int
    gpu_bytes: int
    versions: dict[str, str] = field(default_factory=dict)


def available() -> str:
    """Say why TRL cannot be measured here; empty if it can."""
    import importlib.util

    missing = [name for name in ("trl", "accelerate") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install 'kdflow-lab[bench]'" * bool(missing)


def measure(run: TrlRun) -> Measured:
    """Do a run in a process of its own.

    Raises:
        RuntimeError: It failed; what it printed is shown.
    """
    with tempfile.TemporaryDirectory(prefix="kdflow-trl-") as folder, Memory() as memory:
        environment = {
            **os.environ,
            **memory.environment,
            # as this system's engines have it
            **{
                name: value
                for name, value in ENVIRONMENT.items()
                if run.keeps_memory or not name.startswith("MALLOC_")
            },
            "OMP_NUM_THREADS": str(run.threads),
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(dataclasses.asdict(run)) + "\n")
        process.stdin.flush()
        said, loaded = [], 0
        for line in process.stdout:
            said.append(line)
            if line.startswith('{"loaded"'):
                loaded = memory.now()
                process.stdin.write("go on\n")
                process.stdin.flush()
        process.stdin.close()
        if process.wait():
            raise RuntimeError(f"TRL failed ({process.returncode}):\n{''.join(said)}")
    result = next(json.loads(line) for line in reversed(said) if line.startswith('{"step_s"'))
    return Measured(**result, loaded_bytes=loaded, peak_bytes=memory.peak_bytes)


def token_rows(table: Any, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Turn rows of a `TokenTable` into TRL's: the same ids, the same trained tokens.

    Args:
        table: Rows whose trained tokens are their last ones.
        rows: Which.

    Raises:
        ValueError: Something behind a row's first trained token is not trained; TRL trains it all.
    """
    made = []
    for row in rows:
        start, stop = table.offsets[row], table.offsets[row + 1]
        mask = table.response_mask[start:stop]
        first = int(mask.argmax())
        if not mask[first:].all():
            raise ValueError(f"row {row} has tokens behind its answer that are not trained")
        made.append(
            {
                "prompt": "",  # not read where there are ids and a mask
                "input_ids": table.input_ids[start:stop].tolist(),
                "completion_mask": mask.tolist(),
            }
        )
    return made


def _train(run: TrlRun, folder: str) -> dict[str, Any]:
    """Do the run in this process; what `Measured` holds but its memory."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(run.threads)
    random.seed(SEED)
    ends: list[float] = []
    losses: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        """Notes when a step ended, and the loss that was logged."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for model in models:  # mapped from their files, weights take memory once they are read
                for parameter in model.parameters():
                    parameter.detach().sum()
            print(json.dumps({"loaded": True}), flush=True)
            sys.stdin.readline()
            ends.append(time.perf_counter())
            tokens.append(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if run.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            tokens.append(0)

        def on_log(self, args: Any, state: Any, control: Any, **said: Any) -> None:
            if "loss" in said["logs"]:
                losses.append(float(said["logs"]["loss"]))

    trainer_class, options = _trainer(run, folder)

    class Counting(trainer_class):  # type: ignore[misc, valid-type]
        """Counts the tokens that are trained."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if "labels" in inputs:
                tokens[-1] += int((inputs["labels"][:, 1:] != -100).sum())
            else:
                tokens[-1] += int(inputs["completion_mask"].sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    tokenizer = AutoTokenizer.from_pretrained(run.student)
    teacher_dtype = getattr(torch, run.teacher_dtype)
    if run.trainer == "distillation":
        rows = [{"prompt": row["messages"][:-1]} for row in run.rows]
    else:
        rows = run.rows
    models = (
        AutoModelForCausalLM.from_pretrained(run.student, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(run.teacher, dtype=teacher_dtype),
    )
    trainer = Counting(
        model=models[0],
        teacher_model=models[1],
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    from importlib.metadata import version

    return {
        "step_s": [after - before for before, after in pairwise(ends)],
        "loss": losses,
        "tokens": tokens[: run.steps],
        "gpu_bytes": torch.cuda.max_memory_allocated() if run.device == "cuda" else 0,
        "versions": {name: version(name) for name in ("trl", "transformers", "accelerate")},
    }


def _trainer(run: TrlRun, folder: str) -> tuple[Any, Any]:
    """The trainer's class and its config."""
    micro = run.micro_batch_rows or run.batch_size
    if run.batch_size % micro:
        raise ValueError(f"{run.batch_size} rows are not a multiple of {micro}")
    common: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": run.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": run.batch_size // micro,
        "learning_rate": run.lr,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "bf16": run.bf16,
        "use_cpu": run.device == "cpu",
        "gradient_checkpointing": run.gradient_checkpointing,
        "beta": run.beta,
        "temperature": run.temperature,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    if run.trainer == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        more = {"lmbda": run.lmbda, "max_new_tokens": run.max_new_tokens}
        return GKDTrainer, GKDConfig(**common, **more, max_length=run.max_length)
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    return DistillationTrainer, DistillationConfig(
        **common, max_completion_length=run.max_new_tokens
    )


def main() -> None:
    """Read a run, do it, print what came of it."""
    run = TrlRun(**json.loads(sys.stdin.readline()))
    print(json.dumps(_train(run, sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
