"""Run: what a notebook holds of one training run.

A `Run` reads and writes the run directory and nothing else, so that any kernel or shell can hold
one, during the run or years later. Commands are lines in `control.jsonl`; rank 0 of the students
reads them at the next step boundary (`kdflow_lab.worker`) and answers in `events.jsonl`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab import registration
from kdflow_lab.errors import RunError
from kdflow_lab.jsonl import JsonlTail
from kdflow_lab.launch import checked_settings
from kdflow_lab.metrics import COLUMNS
from kdflow_lab.rundir import ENDED, RunDirectory, list_runs
from kdflow_lab.runlist import RunList

if TYPE_CHECKING:
    import pandas as pd

    from kdflow_lab.evaluate.run_probes import RunProbes
    from kdflow_lab.lab import Lab
    from kdflow_lab.plan.check import Check
    from kdflow_lab.widgets.divergence import DivergenceLens
    from kdflow_lab.widgets.rollouts import RolloutBrowser

POLL_S = 0.1


class Run:
    """One training run, living or ended."""

    def __init__(self, path: str | Path, *, lab: Lab | None = None) -> None:
        """Open a run directory; see `open_run`.

        Args:
            path: The directory.
            lab: Whose engines resume and fork it; found or made when they are needed.
        """
        self.directory = RunDirectory(path)
        self._lab = lab
        self._metrics_tail = JsonlTail(self.directory.metrics_file)
        self._records: dict[int, dict[str, Any]] = {}

    # -- what it is -----------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        """What was asked, fully resolved: `config.yaml`."""
        return self.directory.config()

    @property
    def state(self) -> str:
        """`starting`, `running`, `paused`, `stopping`, `finished`, `stopped` or `failed`."""
        return self.directory.state()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything that happened to the run, oldest first."""
        return self.directory.events()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The metrics of every step as dicts, in step order; the last attempt of a step counts.

        What an attempt did beyond the checkpoint that a later one began from counts no more.
        """
        for record in self._metrics_tail.read():
            self._records[record["step"]] = record
        begun = [event for event in self.events if event["event"] == "started"]
        resumed = [(event.get("attempt", 1), event.get("from_step", 0)) for event in begun[1:]]
        for attempt, step in resumed:
            for stale in [one for one in self._records if one > step]:
                if self._records[stale].get("attempt", 1) < attempt:
                    del self._records[stale]
        return [self._records[step] for step in sorted(self._records)]

    @property
    def metrics(self) -> pd.DataFrame:
        """The metrics of every step, one row a step."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=None if self.records else list(COLUMNS))

    @property
    def step(self) -> int:
        """Steps done; a fork's count on from its parent's."""
        records = self.records
        if records:
            return records[-1]["step"]
        return int((self.parent or {}).get("step", 0))

    @property
    def steps(self) -> int | None:
        """Steps asked for; None until the data was counted."""
        return self.directory.steps_asked()

    @property
    def parent(self) -> dict[str, Any] | None:
        """Where a fork began: the parent's directory (`run`) and `step`; None for other runs."""
        return self.config.get("parent")

    @property
    def parked(self) -> bool:
        """Whether the run is paused and has left the engines to others."""
        return self.directory.last_word().get("event") == "parked"

    @property
    def checkpoints(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        return self.directory.checkpoint_steps()

    @property
    def reason(self) -> str:
        """Why the run failed, or an empty string."""
        for event in reversed(self.events):
            if event["event"] == "failed":
                return event.get("reason", "")
        return "Its process died without a word." if self.state == "failed" else ""

    # -- waiting --------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Run:
        """Block until the run has ended, with a progress bar.

        Ctrl-C (or a kernel interrupt) ends the waiting, not the run.

        Raises:
            RunError: The run failed; the message says why.
            TimeoutError: `timeout` seconds passed first; the run goes on.
        """
        from kdflow_lab.progress import RunProgress

        deadline = None if timeout is None else time.monotonic() + timeout
        with RunProgress(self) as progress:
            try:
                while not progress.update():
                    if deadline is not None and time.monotonic() > deadline:
                        raise TimeoutError(f"{self.name} is {self.state} after {timeout} s.")
                    time.sleep(POLL_S)
            except KeyboardInterrupt:
                print(f"{self.name} goes on without you. run.stop() or %kdflow stop ends it.")
                return self
        return self._checked()

    def __await__(self) -> Generator[Any, None, Run]:
        """Wait without blocking the kernel: buttons and other cells keep working."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> Run:
        while self.state not in ENDED:
            await asyncio.sleep(POLL_S)
        return self._checked()

    def _checked(self) -> Run:
        if self.state == "failed":
            raise RunError(f"{self.name} failed: {self.reason}")
        return self

    # -- commands -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Ask the run to pause before its next step."""
        self._command("pause")

    def resume(self, **changes: Any) -> Run:
        """Let a paused run go on, or take one that has ended up again from its last checkpoint.

        A run that a dead process left, in this kernel or another, goes on too: on its lab if that
        lives, else on a new one.

        Args:
            **changes: As in `set`; `steps=…` lets a finished run go on.

        Raises:
            RunError: The run is active, or has finished and is asked for no more steps.
            ConfigError: A change does not fit.
        """
        if self.state in ENDED or self.parked:
            self.lab.resume(self, **changes)
            return self
        if changes:
            self.set(**changes)
        self._command("resume")
        return self

    def stop(self) -> None:
        """Ask the run to stop before its next step; its weights are kept."""
        self._command("stop")

    def set(self, **changes: Any) -> None:
        """Change options from the next step on, such as `set(lr=1e-4, loss="reverse_kl")`.

        Raises:
            ConfigError: An option cannot be changed while a run goes on, or its value does not fit.
        """
        self.request("set", changes)

    def request(
        self, command: str, changes: dict[str, Any] | None = None, *, by: str | None = None
    ) -> str:
        """Give the run a command as the method of that name does, and say how it will answer.

        Args:
            command: `pause`, `stop`, `set`, `checkpoint`, `evaluate` or `inspect`.
            changes: Options, for `set`.
            by: Who asks, for the acknowledging event; by default this process.

        Returns:
            The `id` that the acknowledging event repeats: `set`, `paused`, `stopping`, `done`, or a
            `warning` that says why not.

        Raises:
            RunError: The run has ended, or has left the engines.
            ConfigError: A change does not fit; see `set`.
        """
        fields: dict[str, Any] = {}
        if command == "set":
            fields["changes"] = checked_settings(changes or {}, self.directory)
            if "loss" in fields["changes"]:
                registration.ship(self.directory)  # it may be registered since the run began
        return self._command(command, by=by, **fields)

    def checkpoint(self) -> None:
        """Ask the run to write a checkpoint before its next step."""
        self._command("checkpoint")

    def evaluate(self) -> None:
        """Ask the run to score itself on its held-out rows before its next step.

        The figures come as an `evaluated` event.
        """
        self._command("evaluate")

    @property
    def plan(self) -> Check:
        """What was to be expected of the run beside what it took: memory and seconds of a step.

        Plans of the same folder are corrected by it from then on. Needs no cluster, but the run's
        models and data.

        Raises:
            RunError: The run has taken no step yet.
            DataError: Its data is not there any more.
            ModelError: One of its models is not.
        """
        from kdflow_lab.plan.check import compare

        return compare(self.directory)

    @property
    def probes(self) -> RunProbes:
        """How the run's student and teacher saw the probe rows, step after step."""
        from kdflow_lab.evaluate.run_probes import RunProbes

        return RunProbes(self.directory.path)

    def inspect(self, step: int | None = None, *, quantity: str | None = None) -> DivergenceLens:
        """See the probe rows as student and teacher saw them, step after step.

        A run that is active is also asked to look at them before its next step; `probe_every` makes
        it do so regularly. The lens follows. Needs no cluster.

        Args:
            step: A step in `probes.steps` that the lens shows first; by default the newest.
            quantity: What tokens are coloured by, such as `reverse_kl`, `surprise` or `rank`; by
                default `forward_kl` where it is known.

        Raises:
            RunError: There are no probes of that step; or none at all, and the run has ended or
                left the engines.
            ConfigError: There is no such quantity.
        """
        from kdflow_lab.evaluate.run_probes import checked_probes
        from kdflow_lab.widgets.divergence import DivergenceLens

        probes = checked_probes(self.path, step, quantity)
        if self.state not in ENDED and not (self.parked and probes.steps):
            self._command("inspect")
        elif not probes.steps:
            raise RunError(
                f"{self.name} has ended without probes. Set probe_every in a run, or call "
                "run.inspect() while it trains; of this one, lab.inspect(texts, model=run) shows "
                "any texts."
            )
        return DivergenceLens(probes, quantity=quantity)

    def fork(self, *, step: int | None = None, **changes: Any) -> Run:
        """Start another run from one of this run's checkpoints, with some options changed.

        Args:
            step: A step in `checkpoints`; by default the last one.
            **changes: Fields of `DistillConfig`; the others stay as they are at that step.

        Raises:
            RunError: There is no such checkpoint, or nothing left to do after it.
            ConfigError: An option is unknown or does not fit.
        """
        return self.lab.fork(self, step=step, **changes)

    @property
    def lab(self) -> Lab:
        """The lab that resumes and forks this run: a living one, or one made for it."""
        if self._lab is None:
            from kdflow_lab.lab import lab_for

            self._lab = lab_for(self)
        return self._lab

    def _command(self, command: str, *, by: str | None = None, **fields: Any) -> str:
        state = self.state
        if state in ENDED:
            raise RunError(f"Cannot {command} {self.name}: it is {state} already.")
        if self.parked:
            raise RunError(
                f"Cannot {command} {self.name}: it is paused and has left the engines to another "
                "job. run.resume() takes it up again."
            )
        by = by or f"pid {os.getpid()}"
        return self.directory.command(command, by=by, **fields)

    # -- results --------------------------------------------------------------------------------

    def export(self, path: str | Path, *, step: int | None = None, adapter: bool = False) -> Path:
        """Write the student as a Hugging Face folder with its tokenizer; return the folder.

        `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it. Needs no
        cluster: the weights come from a checkpoint of the run. The adapters of a LoRA run are
        merged into the model.

        Args:
            path: The folder; one that holds a model already is replaced.
            step: A step in `checkpoints`; by default the last one.
            adapter: Write only the adapter of a LoRA run, a small folder that
                `peft.PeftModel.from_pretrained` puts on the model that the run started from.

        Raises:
            RunError: The run has no such checkpoint, or it is damaged; or `adapter`, and the run
                trained all weights.
            ConfigError: `adapter`, and PEFT is not installed.
        """
        from kdflow_lab.student.export import export_hf

        return export_hf(self.directory, Path(path), step=step, adapter=adapter)

    def lm_eval(self, tasks: str | Sequence[str], **options: Any) -> pd.DataFrame:
        """Run benchmarks of the lm-evaluation-harness on the student; see `kd.lm_eval`."""
        from kdflow_lab.evaluate.harness import lm_eval

        return lm_eval(self, tasks, **options)

    def student(self, *, step: int | None = None) -> Any:
        """Load the student as a `transformers` model from a checkpoint, by default the last one."""
        from kdflow_lab.student.export import load_hf

        return load_hf(self.directory, step=step)

    def plot(self) -> Any:
        """Return the run's figure: live while the run is, static where nothing runs."""
        from kdflow_lab.widgets.curves import RunFigure

        return RunFigure(self)

    def compare(self, *others: Run) -> Any:
        """Return this run beside others: their curves, what differs, and what they reached."""
        from kdflow_lab.widgets.compare import Comparison

        return Comparison((self, *others))

    def rollouts(self, *, threshold: float = 0.5) -> RolloutBrowser:
        """Return what the student of an on-policy run wrote, to be browsed; live while it trains.

        Args:
            threshold: Nats of KL(teacher || student) from which on a token counts as diverging.

        Raises:
            DataError: The run is not on-policy.
        """
        from kdflow_lab.widgets.rollouts import browse

        return browse(self, threshold=threshold)

    def replay(self, step: int | None = None) -> Any:
        """Run a step that was left out again, row by row on this CPU: what is not finite, and why.

        Needs no cluster. The result shows itself as a table, in a notebook or a terminal.

        Args:
            step: A step with a `skipped` event; by default the last one whose batch was kept.

        Raises:
            RunError: There is no such step, or its batch was not kept.
        """
        from kdflow_lab.evaluate.replay import replay

        return replay(self.directory, step)

    def __repr__(self) -> str:
        """One line: name, state and step."""
        total = f"/{self.steps}" if self.steps else ""
        return f"<Run {self.name}: {self.state}, step {self.step}{total}>"


def open_run(path: str | Path) -> Run:
    """Open a run directory; needs no cluster.

    Raises:
        RunError: `path` is no run directory.
    """
    run = Run(path)
    run.directory.config()
    return run


def runs(folder: str | Path = "kdflow_runs") -> RunList:
    """List the runs in a folder, living or not, oldest first; needs no cluster."""
    return RunList(Run(directory.path) for directory in list_runs(folder))
