"""MS-SWIFT's GKD as another side of a comparison, by its own command line.

MS-SWIFT pins other versions of TRL and `datasets`, so it lives in an environment of its own, whose
`swift` command is named. It reads `messages` and renders them with its own template; its step times
come from the log that it writes itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from _memory import Memory
from _trl import Measured, TrlRun

from kdflow_lab.engines import ENVIRONMENT


def arguments(run: TrlRun, data: Path, folder: Path) -> list[str]:
    """What `swift rlhf` is told for a run."""
    micro = run.micro_batch_rows or run.batch_size
    options = {
        "rlhf_type": "gkd",
        "model": run.student,
        "teacher_model": run.teacher,
        "tuner_type": "full",
        "torch_dtype": "bfloat16" if run.bf16 else "float32",
        "dataset": data,
        "output_dir": folder,
        "add_version": False,
        "max_steps": run.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": run.batch_size // micro,
        "learning_rate": run.lr,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "beta": run.beta,
        "lmbda": run.lmbda,
        "temperature": run.temperature,
        "max_length": run.max_length,
        "max_completion_length": run.max_new_tokens,
        "gradient_checkpointing": run.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "split_dataset_ratio": 0,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "use_hf": True,
    }
    words = []
    for name, value in options.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


def measure(swift: str, run: TrlRun, more: list[str] | None = None) -> Measured:
    """Do a run with the `swift` command at `swift`.

    Args:
        swift: Path of the command.
        run: `rows` have `messages`; `gkd` only.
        more: Further words, such as `--model_type qwen3` for folders whose name says nothing.

    Raises:
        RuntimeError: It failed; the end of what it printed is shown.
    """
    with tempfile.TemporaryDirectory(prefix="kdflow-swift-") as name, Memory() as memory:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps({"messages": r["messages"]}) + "\n" for r in run.rows))
        environment = {
            **os.environ,
            **memory.environment,
            **ENVIRONMENT,
            "OMP_NUM_THREADS": str(run.threads),
            "HF_HUB_OFFLINE": "1",
        }
        if run.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        done = subprocess.run(
            [swift, "rlhf", *arguments(run, data, folder / "out"), *(more or [])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"MS-SWIFT failed ({done.returncode}):\n{done.stdout[-4000:]}")
        (log,) = (folder / "out").rglob("logging.jsonl")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    return _measured(records, memory.peak_bytes)


def _measured(records: list[dict[str, Any]], peak_bytes: int) -> Measured:
    """Read its log: `train_speed(s/it)` is the mean since the start of the training."""
    steps = [record for record in records if "loss" in record]
    elapsed = [record["train_speed(s/it)"] * (number + 1) for number, record in enumerate(steps)]
    return Measured(
        step_s=[after - before for before, after in zip([0.0, *elapsed], elapsed, strict=False)],
        loss=[record["loss"] for record in steps],
        tokens=[],  # it does not say
        loaded_bytes=0,
        peak_bytes=peak_bytes,
        gpu_bytes=int(max(record.get("memory(GiB)", 0) for record in records) * 2**30),
    )
