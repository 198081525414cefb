"""What commands work on: a lab and a folder of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import RunError, nearest

if TYPE_CHECKING:
    from kdflow_lab.lab import Lab
    from kdflow_lab.run import Run


class Session:
    """The common part of the notebook's session and the shell's."""

    prefix = "kdflow"
    """What stands before a command."""
    no_lab = ""
    """What to do when there is no lab."""
    is_terminal = False
    """Whether results are printed, and not shown as a notebook shows them."""

    def current_lab(self) -> Lab | None:
        """Return the lab that is there already."""
        return None

    def lab(self, *, like: Any = None) -> Lab:
        """Return the lab for a command that needs one.

        Args:
            like: A `Run` whose teacher and student are meant where nothing else is said.

        Raises:
            ConfigError: There is none.
        """
        raise NotImplementedError

    def lab_of(self, run: Run) -> Lab:
        """Return the lab that can resume or fork a run."""
        return run.lab

    def attach(self, where: str | None) -> Lab:
        """Take hold of a living lab, and keep it."""
        raise NotImplementedError

    def up(self, options: dict[str, Any]) -> Lab:
        """Bring a lab up and keep it."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Tell the user something that is not a result."""
        print(text)

    def folder(self) -> Path:
        """The folder of the runs that names stand for."""
        lab = self.current_lab()
        return Path(lab.dir) if lab else Path(os.environ.get("KDFLOW_RUNS", "kdflow_runs"))

    def run_names(self, folder: str | Path | None = None) -> list[str]:
        """Names of the runs in the folder, newest first."""
        from kdflow_lab.rundir import list_runs

        return [one.path.name for one in list_runs(folder or self.folder())][::-1]

    def run(self, name: Any = None, folder: str | Path | None = None) -> Run:
        """Open a run.

        Args:
            name: A `Run`, a run directory, a name in the folder, or `latest` (also None).
            folder: Where names are looked up; by default the lab's folder.

        Raises:
            RunError: There is no such run; the nearest name is offered.
        """
        from kdflow_lab.run import Run, open_run

        if isinstance(name, Run):
            return name
        root = Path(folder or self.folder()).expanduser()
        names = self.run_names(root)
        if name in (None, "latest"):
            if not names:
                raise RunError(f"There is no run in {root}. Start one with distill, or pass --dir.")
            name = names[0]
        for path in (Path(str(name)).expanduser(), root / str(name)):
            if (path / "config.yaml").is_file():
                return self._opened(open_run(path))
        known = (
            f" It holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}." if names else ""
        )
        raise RunError(f"There is no run {name!r} in {root}.{nearest(str(name), names)}{known}")

    def run_at(self, name: Any = None, folder: str | Path | None = None) -> tuple[Run, int | None]:
        """Open a run that may be followed by a step, as `my-run@200`; see `run`."""
        text = name if isinstance(name, str) else ""
        stem, at, step = text.rpartition("@")
        if at and step.isdigit():
            return self.run(stem or None, folder), int(step)
        return self.run(name, folder), None

    def _opened(self, run: Run) -> Run:
        """Bind a run to the current lab if it lies in that lab's folder."""
        lab = self.current_lab()
        return lab.run(run.path) if lab is not None and run.path.parent == lab.dir else run
