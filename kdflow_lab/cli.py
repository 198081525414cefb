"""The shell's `kdflow`: the commands of `%kdflow`, through the same table and the same parser.

A notebook keeps its lab; a shell command that needs one makes it, waits, and closes it. Exit codes:
0 done, 1 failed, 2 not understood.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.commandline import Command, help_text, parse
from kdflow_lab.commands import find, lab_options, overview
from kdflow_lab.errors import ConfigError, KDFlowLabError, RunError
from kdflow_lab.options import Option
from kdflow_lab.rundir import ENDED
from kdflow_lab.session import Session

if TYPE_CHECKING:
    from kdflow_lab.lab import Lab
    from kdflow_lab.run import Run

EXPORT = Option(
    name="export", help="When the run has ended, write its student here.", type_text="FOLDER"
)


class ShellSession(Session):
    """A lab that lives as long as the command."""

    no_lab = "In a shell a lab lives as long as its command: see kdflow help distill"
    is_terminal = True

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.lab_options: dict[str, Any] = {}
        self._lab: Lab | None = None
        self._owned = True  # else the lab is somebody's who goes on with it

    def current_lab(self) -> Lab | None:
        """Return the lab of this command, once it is made."""
        return self._lab

    def lab(self, *, like: Any = None) -> Lab:
        """Make the lab of this command; what is not said is taken from the run `like`."""
        if self._lab is None:
            options = dict(self.lab_options)
            if like is not None and not isinstance(like, str):
                options = {**like.config.get("lab", {}), **options}
            missing = [f"--{name}" for name in ("teacher", "student") if name not in options]
            if missing:
                raise ConfigError(f"Say {' and '.join(missing)}, such as --teacher zoo/teacher.")
            from kdflow_lab.lab import Lab

            self._lab = Lab(**options)
        return self._lab

    def lab_of(self, run: Run) -> Lab:
        """Return the living lab that can take a run, or make one for this command."""
        from kdflow_lab.lab import lab_for

        if self._lab is None and not self.lab_options:
            self._lab = lab_for(run)
            self._owned = self._lab.runtime_dir is None
        return self.lab(like=run)

    def attach(self, where: str | None) -> Lab:
        """Take hold of a living lab for as long as this command."""
        from kdflow_lab import runtime
        from kdflow_lab.lab import Lab

        for record in runtime.living():
            self.say(str(record))
        self._lab, self._owned = Lab.attach(where), False
        return self._lab

    def folder(self) -> Path:
        """The folder of the lab that will be made, if one was said."""
        said = self.lab_options.get("dir")
        return Path(said) if said and self._lab is None else super().folder()

    def up(self, options: dict[str, Any]) -> Lab:
        """Refuse: there would be nobody to keep the lab."""
        raise ConfigError(f"kdflow up is for notebooks. {self.no_lab}")

    def close(self) -> None:
        """End the lab's processes, if there is a lab and nobody else uses it."""
        if self._lab is None:
            return
        if self._owned:
            self._lab.close()
        else:
            self._lab.detach()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    session = ShellSession()
    try:
        _run(session, words)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        return 0
    except ConfigError as error:
        print(f"kdflow: {error}", file=sys.stderr)
        return 2
    except KDFlowLabError as error:
        print(f"kdflow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kdflow: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `kdflow runs | head`
        # what is still buffered must go nowhere when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        session.close()


def _run(session: ShellSession, words: list[str]) -> None:
    """Understand the words and do what they say."""
    if not words or words[0] in ("-h", "--help"):
        session.say(overview(session.prefix))
        return
    command = find(words[0], session.prefix)
    extra = _extra(command)
    if {"-h", "--help"} & set(words[1:]):
        session.say(help_text(command, prefix=session.prefix, extra=extra))
        return
    given = parse(command, words[1:], prefix=session.prefix, extra=extra)
    _carry_out(session, command, given)


def _extra(command: Command) -> list[Option]:
    """Options that only the shell has: those of the lab, and where to export."""
    known = command.known()
    lab = [one for one in lab_options() if one.name not in known] if command.needs_lab else []
    return [*lab, *([EXPORT] if command.starts_run else [])]


def _carry_out(session: ShellSession, command: Command, given: dict[str, Any]) -> None:
    """Call the command and show what it returns."""
    if command.needs_lab:
        names = {option.name for option in lab_options()}
        session.lab_options = {name: given.pop(name) for name in names & given.keys()}
    export = given.pop("export", None)
    if command.name == "plot" and "save" not in given:
        raise ConfigError("kdflow plot needs --save FILE: a shell shows no figure.")
    result = command.call(session, given)
    if command.starts_run:
        if result is not None:
            _follow(session, result, export)
    elif command.name == "attach":
        _follow_active(session, result)
    elif result is not None and command.name != "plot":
        print(result)


def _follow(session: ShellSession, run: Run, export: str | None) -> None:
    """Wait for a run with a progress bar; Ctrl-C stops it, a second one gives it up.

    Raises:
        RunError: It failed.
    """
    from kdflow_lab.progress import RunProgress

    interrupts = 0
    with RunProgress(run) as progress:
        while True:
            try:
                if progress.update():
                    break
                time.sleep(0.1)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise RunError(f"Gave {run.name} up at step {run.step}. {run.path}") from None
                _stop(run)
    if run.state == "failed":
        raise RunError(f"{run.name} failed: {run.reason} {run.path}")
    print(f"run     {run.path}")
    if export is not None:
        print(f"export  {run.export(export)}")
    else:
        print(f"export  not asked for: kdflow export {run.path} FOLDER")


def _follow_active(session: ShellSession, lab: Lab) -> None:
    """Show what a lab does, and follow its newest run until that ends or Ctrl-C leaves it."""
    print(lab.status())
    going = [run for run in lab.runs if run.state not in ENDED]
    if going:
        going[-1].wait()


def _stop(run: Run) -> None:
    """Ask a run to stop, and say what that means."""
    print(
        "\nStopping before the next step; the weights are kept. Ctrl-C again gives them up.",
        file=sys.stderr,
    )
    try:
        run.stop()
    except RunError:
        return  # it ended by itself in the meantime


if __name__ == "__main__":
    sys.exit(main())
