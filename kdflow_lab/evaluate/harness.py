"""Benchmarks of EleutherAI's lm-evaluation-harness on a run's student or a model folder.

The harness (package `lm-eval`, MIT) is an extra: `pip install 'kdflow-lab[lm-eval]'`. It loads the
exported model itself, in this process, and needs no lab.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError, unknown_name
from kdflow_lab.extras import need_extra
from kdflow_lab.hub import resolve_model
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.export import export_hf

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("task", "metric", "filter", "value", "stderr", "rows", "few_shot", "version")
NO_METRICS = ("alias", "name", "sample_len", "sample_count")
"""Entries of the harness' results that are no figures."""


def lm_eval(
    model: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int | str = 8,
    device: str = "auto",
    step: int | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run benchmarks of the lm-evaluation-harness.

    Most tasks of the harness download their data from the Hugging Face hub at the first use.

    Args:
        model: A `Run` or its directory, a model folder, `zoo/…` or a hub id.
        tasks: Names of the harness' tasks or groups, or of those in `include_path`.
        limit: Only the first rows of each task; for a trial: figures of it mean little.
        few_shot: Examples before each question; by default as the task says.
        include_path: A folder with tasks of your own (YAML), besides those of the harness.
        batch_size: Rows at once, or `auto`.
        device: `auto` is a GPU if torch sees one; or as torch calls it.
        step: Of a run, a step that has a checkpoint; by default the last one.
        **options: Further arguments of `lm_eval.simple_evaluate`, such as
            `apply_chat_template=True`.

    Returns:
        One line a task, metric and filter: `task`, `metric`, `filter`, `value`, `stderr` (the
        harness' standard error over rows, NaN where it has none), `rows`, `few_shot`, `version`.

    Raises:
        ConfigError: The package is missing, or there is no such task.
        RunError: The run has no such checkpoint.
    """
    need_extra(
        "lm_eval",
        "lm-eval",
        what="lm_eval",
        instead="lab.evaluate scores on your own data without it.",
    )
    import torch

    harness: Any = importlib.import_module("lm_eval")
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    manager = _manager(names, None if include_path is None else Path(include_path).expanduser())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _folder_of(model, step) as folder:
        found = harness.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder)},
            tasks=names,
            num_fewshot=few_shot,
            batch_size=batch_size,
            device=device,
            limit=limit,
            task_manager=manager,
            log_samples=options.pop("log_samples", False),
            **options,
        )
    return _frame(found or {})


@contextlib.contextmanager
def _folder_of(model: Any, step: int | None) -> Iterator[Path]:
    """The folder of a model; a run's student is exported to one that is gone afterwards."""
    directory = getattr(model, "directory", None)
    if directory is None and (Path(str(model)).expanduser() / "events.jsonl").is_file():
        directory = RunDirectory(Path(str(model)).expanduser())
    if not isinstance(directory, RunDirectory):
        if step is not None:
            raise ConfigError(f"{str(model)!r} is no run: it has no checkpoint of step {step}.")
        yield Path(resolve_model(str(model)))
        return
    with tempfile.TemporaryDirectory(prefix="kdflow-lm-eval-") as folder:
        yield export_hf(directory, Path(folder) / "model", step=step)


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """The harness' index of tasks, which takes seconds to read where its own are asked for.

    Raises:
        ConfigError: There is no such task; the nearest is offered, of thousands.
    """
    make: Any = importlib.import_module("lm_eval.tasks").TaskManager
    if include_path is not None:
        if not include_path.is_dir():
            raise ConfigError(f"include_path={str(include_path)!r} is no folder with tasks.")
        own = make(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = make(include_path=None if include_path is None else str(include_path))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            offer = str(unknown_name("task", name, known)).partition(" Known:")[0]
            raise ConfigError(
                f"{offer} There are {len(known):,} tasks; those of your own need include_path, the "
                "folder of their YAML files."
            )
    return manager


def _frame(found: Any) -> pd.DataFrame:
    """The harness' results, one line a figure."""
    import pandas as pd

    lines = []
    for task, figures in found.get("results", {}).items():
        for key, value in figures.items():
            metric, _, filter_name = key.partition(",")
            if key in NO_METRICS or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{filter_name}")
            lines.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filter_name,
                    "value": value,
                    "stderr": error if isinstance(error, int | float) else float("nan"),
                    "rows": found.get("n-samples", {}).get(task, {}).get("effective"),
                    "few_shot": found.get("n-shot", {}).get(task),
                    "version": found.get("versions", {}).get(task),
                }
            )
    return pd.DataFrame(lines, columns=list(COLUMNS))
