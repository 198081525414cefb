"""Lab: a teacher, its students and the engines they live in; what a notebook holds.

`Lab.distill` returns a `Run` at once. A thread of the kernel brings the engines up if need be and
gives them their parts (`kdflow_lab.engines`); what happens then is in the run directory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab import algorithms
from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.engines import Engines
from kdflow_lab.errors import RunError
from kdflow_lab.hub import pin_name, resolve_model
from kdflow_lab.losses.names import full_name
from kdflow_lab.metrics import versions
from kdflow_lab.progress import job_progress, phases
from kdflow_lab.run import Run
from kdflow_lab.rundir import ENDED, RunDirectory
from kdflow_lab.status import LabStatus

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.evaluate.report import Evaluation

HANDOVER_S = 10.0
"""How long an evaluation waits for engines whose run has ended already."""


class Lab:
    """A teacher that teaches a student, on the engines of this machine.

    Example:
        >>> lab = kd.Lab(teacher="zoo/teacher", student="zoo/student")
        >>> run = lab.distill(data="zoo/tasks", steps=200, lr=4e-3)
        >>> run.wait()
        >>> lab.evaluate("zoo/tasks", model=run)
        >>> lab.close()
    """

    def __init__(self, teacher: str, student: str, **options: Any) -> None:
        """Describe the lab; nothing starts before `up` or the first use.

        Args:
            teacher: `zoo/teacher`, a local folder, or a hub id.
            student: Likewise; where every run's student starts from.
            **options: The other fields of `kdflow_lab.config.LabConfig`. Run directories lie in
                `dir`, by default `$KDFLOW_RUNS` or `kdflow_runs`.

        Raises:
            ConfigError: An option is unknown or does not fit, or the zoo has no such model.
            ModelError: There is no folder of that name, or it is no model.
        """
        if "KDFLOW_RUNS" in os.environ:
            options.setdefault("dir", os.environ["KDFLOW_RUNS"])
        config = LabConfig.parse(teacher=teacher, student=student, **options)
        names = {"teacher": pin_name(teacher), "student": pin_name(student)}
        self.config = config.model_copy(update=names)
        self.dir = Path(self.config.dir).expanduser().absolute()
        self.runs: list[Run] = []
        self._engines = Engines(self.config)
        self._starting = threading.Lock()
        self._turn = threading.Lock()  # held by whatever uses the engines: a run, an evaluation

    # -- up and down ----------------------------------------------------------------------------

    def up(self) -> Lab:
        """Start the engines and load the teacher; does nothing where that is done.

        Raises:
            ClusterError: The engines do not start.
            ModelError: The teacher or the student cannot be loaded.
        """
        with self._starting, phases() as say:
            self._engines.up(say)
        return self

    def close(self) -> None:
        """End every process of the lab now, an active run included; safe to call twice."""
        with self._starting:
            self._engines.close()

    def __enter__(self) -> Lab:
        """Bring the lab up."""
        return self.up()

    def __exit__(self, *exception: object) -> None:
        """Close the lab."""
        self.close()

    def status(self) -> LabStatus:
        """Tell what the lab is, what of it lives, and what its runs do."""
        return LabStatus.of(self.config, self._engines, self.runs)

    def __repr__(self) -> str:
        """One line: who teaches whom, and whether the engines are up."""
        state = "down" if self._engines.cluster is None else "up"
        return f"<Lab {self.config.teacher} -> {self.config.student}: {state}>"

    # -- training -------------------------------------------------------------------------------

    def distill(self, **options: Any) -> Run:
        """Start a run and return at once; the engines come up in the background if need be.

        A run that is started while another one trains waits for its turn.

        Args:
            **options: Fields of `kdflow_lab.config.DistillConfig`.

        Raises:
            ConfigError: An option is unknown or does not fit; nothing was started.
        """
        config = DistillConfig.parse(**options)
        full_name(config.loss)
        algorithms.check_name(config.algorithm)
        run, data = self._make_run(config)
        self.runs.append(run)
        threading.Thread(target=self._drive, args=(run, config, data), daemon=True).start()
        return run

    def sft(self, **options: Any) -> Run:
        """Fine-tune on the answers in the data alone: the control of every distillation."""
        return self.distill(**{**options, "algorithm": "sft", "kd_ratio": 0.0})

    def _make_run(self, config: DistillConfig) -> tuple[Run, str]:
        """Make the run directory with everything that was asked, and name the data's place."""
        label = "sft" if config.algorithm == "sft" else config.loss
        name = config.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{len(self.runs) + 1}"
        directory = RunDirectory(self.dir / name)
        if not isinstance(config.data, str):
            data = str(directory.path / "data.parquet")  # written by the run's thread
        elif Path(config.data).expanduser().exists():
            data = str(Path(config.data).expanduser().absolute())  # engines may stand elsewhere
        else:
            data = config.data
        asked = config.model_dump(mode="json", exclude={"data"})
        lab = self.config.model_dump(mode="json")
        directory.create({"data": data, **asked, "lab": lab, "versions": versions()})
        directory.event("starting", pid=os.getpid())
        return Run(directory.path), data

    def _drive(self, run: Run, config: DistillConfig, data: str) -> None:
        """Take a run through its life; whatever goes wrong is said in its directory."""
        directory = run.directory
        try:
            if not isinstance(config.data, str):
                _write_parquet(config.data, data, config.split)
                config = config.model_copy(update={"data": data})
            with self._turn:
                with self._starting:
                    self._engines.up(lambda text: directory.event("phase", text=text))
                self._engines.train(directory, config, data=data)
        except Exception as error:
            if directory.state() not in ENDED:
                directory.event("failed", reason=str(error), error=type(error).__name__)

    # -- looking at models ----------------------------------------------------------------------

    def evaluate(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | Run = "student",
        split: str = "test",
        rows: int | None = 500,
        seed: int = 1,
        generate: bool = True,
        max_new_tokens: int = 64,
        max_length: int = 2048,
    ) -> Evaluation:
        """Tell how close a model is to the teacher on held-out rows, and how often it is right.

        Args:
            data: As in `distill`.
            model: `"student"` (where runs start from), `"teacher"`, a `Run`, or a model folder.
            split: Split of the data.
            rows: Rows taken; None takes all.
            seed: Chooses the rows where the data is generated.
            generate: Also let the model answer, for exact match; plain text asks nothing.
            max_new_tokens: Longest answer.
            max_length: Most tokens of a row; a longer one is an error.

        Returns:
            `kl` to the teacher and `agreement` of the top token on the reference answers' tokens,
            `perplexity` of those, `exact_match`, the same by kind, and per-row values.

        Raises:
            RunError: A run is using the engines, or the run to evaluate has not ended.
        """
        from kdflow_lab.evaluate.report import Evaluation

        options = {
            "generate": generate,
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
        }
        with self._subject(model, data, split, "evaluating") as (fields, on_progress):
            fields |= {"rows": rows, "seed": seed, "options": options}
            parts = self._engines.score(on_progress, **fields)
        return Evaluation.merge(parts, name=_name(model))

    def rollouts(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | Run = "student",
        split: str = "train",
        rows: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
    ) -> Dataset:
        """Let a model answer the prompts of `data`.

        Args:
            data: As in `distill`; only the prompts are used.
            model: `"student"`, `"teacher"`, a `Run`, or a model folder.
            split: Split of the data.
            rows: Rows taken; None takes all.
            seed: Of the rows and of the sampling.
            temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
            max_new_tokens: Longest answer.

        Returns:
            The rows with the last answer of `messages` replaced by the model's, and a column
            `finished` that is false where the answer was cut: data for `distill` and `sft`.
        """
        from datasets import Dataset

        options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        with self._subject(model, data, split, "answering") as (fields, on_progress):
            fields |= {"rows": rows, "seed": seed, "options": options}
            parts = self._engines.write(on_progress, **fields)
        answers = sorted((row for part in parts for row in part), key=lambda row: row.pop("row"))
        return Dataset.from_list(answers)

    @contextlib.contextmanager
    def _subject(
        self, model: str | Run, data: Any, split: str, verb: str
    ) -> Iterator[tuple[dict, Any]]:
        """Take the engines for looking at a model; give its place and a progress bar."""
        path, is_run = self._place_of(model)
        busy = [run.name for run in self.runs if run.state not in ENDED]
        # A run that has just ended still holds the engines for a moment.
        if not self._turn.acquire(timeout=0 if busy else HANDOVER_S):
            raise RunError(
                f"The engines are busy with {', '.join(busy) or 'another job'}. Wait for it "
                "(run.wait()) or stop it (run.stop()) first."
            )
        try:
            self.up()
            folder = self._engines.scratch()
            if not isinstance(data, str):
                file = str(folder / "data.parquet")
                _write_parquet(data, file, split)
                data = file
            elif Path(data).expanduser().exists():
                data = str(Path(data).expanduser().absolute())
            fields = {"model": path, "is_run": is_run, "data": data, "split": split}
            with job_progress(f"{verb}: {_name(model)}") as on_progress:
                yield fields, on_progress
        finally:
            self._turn.release()

    def _place_of(self, model: str | Run) -> tuple[str, bool]:
        """Return the folder behind a model's name and whether it is a run directory."""
        if isinstance(model, Run):
            if model.state not in ENDED:
                raise RunError(f"{model.name} is {model.state}. Wait for it first: run.wait().")
            return str(model.path), True
        named = {"student": self.config.student, "teacher": self.config.teacher}
        return resolve_model(named.get(model, model)), False


def _name(model: str | Run) -> str:
    """What a model is called in tables."""
    return model if isinstance(model, str) else model.name


def _write_parquet(data: Any, file: str, split: str) -> None:
    """Write rows that only this process holds to where the engines can read them."""
    import datasets

    from kdflow_lab.data.sources import load

    rows = load(data, split=split)
    had_bars = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()  # they flash by, in whatever cell is running
    try:
        rows.to_parquet(file)
    finally:
        if had_bars:
            datasets.enable_progress_bars()
