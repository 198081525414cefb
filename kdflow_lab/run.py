"""Run: what a notebook holds of one training run.

A `Run` reads and writes the run directory and nothing else, so that any kernel or shell can hold
one, during the run or years later. Commands are lines in `control.jsonl`; rank 0 of the students
reads them at the next step boundary (`kdflow_lab.worker`) and answers in `events.jsonl`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.config import SETTABLE, DistillConfig
from kdflow_lab.errors import ConfigError, RunError, unknown_name
from kdflow_lab.losses.names import full_name
from kdflow_lab.metrics import COLUMNS
from kdflow_lab.rundir import ENDED, JsonlTail, RunDirectory, list_runs

if TYPE_CHECKING:
    import pandas as pd

POLL_S = 0.1


class Run:
    """One training run, living or ended."""

    def __init__(self, path: str | Path) -> None:
        """Open a run directory; see `open_run`."""
        self.directory = RunDirectory(path)
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
        """The metrics of every step as dicts, in step order; the last attempt of a step counts."""
        for record in self._metrics_tail.read():
            self._records[record["step"]] = record
        return [self._records[step] for step in sorted(self._records)]

    @property
    def metrics(self) -> pd.DataFrame:
        """The metrics of every step, one row a step."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=None if self.records else list(COLUMNS))

    @property
    def step(self) -> int:
        """Steps done."""
        records = self.records
        return records[-1]["step"] if records else 0

    @property
    def steps(self) -> int | None:
        """Steps asked for; None until the data was counted."""
        total = None
        for event in self.events:
            total = (event.get("changes") or {}).get("steps", event.get("steps", total))
        return total

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

    def resume(self) -> None:
        """Ask a paused run to go on."""
        self._command("resume")

    def stop(self) -> None:
        """Ask the run to stop before its next step; its weights are kept."""
        self._command("stop")

    def set(self, **changes: Any) -> None:
        """Change options from the next step on, such as `set(lr=1e-4, loss="reverse_kl")`.

        Raises:
            ConfigError: An option cannot be changed while a run goes on, or its value does not fit.
        """
        for name in changes:
            if name not in SETTABLE:
                raise unknown_name("setting", name, SETTABLE)
            if changes[name] is None:
                raise ConfigError(f"Option {name!r} cannot be set to None: give a value.")
        if not changes:
            raise ConfigError(f"Nothing to set. Settings: {', '.join(SETTABLE)}.")
        checked = DistillConfig.parse(**changes)
        full_name(checked.loss)
        self._command("set", changes={name: getattr(checked, name) for name in changes})

    def _command(self, command: str, **fields: Any) -> str:
        state = self.state
        if state in ENDED:
            raise RunError(f"Cannot {command} {self.name}: it is {state} already.")
        return self.directory.command(command, by=f"pid {os.getpid()}", **fields)

    # -- results --------------------------------------------------------------------------------

    def export(self, path: str | Path) -> Path:
        """Write the student as a Hugging Face folder with its tokenizer; return the folder.

        `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it. Needs no
        cluster: the weights come from the run's last checkpoint.

        Raises:
            RunError: The run has no checkpoint yet.
        """
        from kdflow_lab.student.checkpoint import export_hf

        return export_hf(self.directory, Path(path))

    def student(self) -> Any:
        """Load the student as a `transformers` model from the run's last checkpoint."""
        from kdflow_lab.student.checkpoint import load_hf

        return load_hf(self.directory)

    def plot(self) -> Any:
        """Return the run's figure: live while the run is, static where nothing runs."""
        from kdflow_lab.widgets.curves import RunFigure

        return RunFigure(self)

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


def runs(folder: str | Path = "kdflow_runs") -> list[Run]:
    """List the runs in a folder, oldest first."""
    return [Run(directory.path) for directory in list_runs(folder)]
