"""`%kdflow` and `%%kdflow`: a line or a cell becomes one call of `Lab` or `Run`.

What the commands are stands in `kdflow_lab.commands`; here is what only a notebook has: variables,
a cell's YAML, the figure of a run that starts, errors in one line, and tab completion.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from IPython.core.magic import needs_local_scope, no_var_expand

from kdflow_lab.commandline import Command, fill, help_text, parse, unknown_option
from kdflow_lab.commands import COMMANDS, find, overview
from kdflow_lab.completion import complete_line, complete_yaml
from kdflow_lab.errors import ConfigError, KDFlowLabError
from kdflow_lab.expand import split, yaml_body
from kdflow_lab.session import Session

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdflow_lab.lab import Lab

VARIABLE = "lab"
"""The notebook's variable that holds the current lab."""
_TAG = "kdflow_lab"


class NotebookSession(Session):
    """The current lab is the notebook's variable `lab`, whoever put it there."""

    prefix = "%kdflow"
    no_lab = "Make one: %kdflow up --teacher zoo/teacher --student zoo/student"

    def __init__(self, names: dict[str, Any]) -> None:
        """Work on a notebook's variables."""
        self._names = names
        self._lab: Lab | None = None

    def current_lab(self) -> Lab | None:
        """Return the notebook's `lab`, or the one made here if that name means something else."""
        lab = self._names.get(VARIABLE)
        return lab if _is_lab(lab) else self._lab

    def lab(self, *, like: Any = None) -> Lab:
        """Return the current lab."""
        lab = self.current_lab()
        if lab is None:
            raise ConfigError(f"There is no lab yet. {self.no_lab}")
        return lab

    def attach(self, where: str | None) -> Lab:
        """Take hold of a living lab; it becomes the notebook's `lab`."""
        from kdflow_lab import runtime
        from kdflow_lab.lab import Lab

        for record in runtime.living():
            self.say(str(record))
        lab = self.current_lab()
        if lab is not None:
            lab.detach()
        lab = Lab.attach(where)
        self._keep(lab)
        return lab

    def up(self, options: dict[str, Any]) -> Lab:
        """Bring the current lab up, or make the one that is asked for."""
        from kdflow_lab.config import LabConfig

        lab = self.current_lab()
        if lab is None:
            missing = [name for name in ("teacher", "student") if name not in options]
            if missing:
                raise ConfigError(f"up needs a {' and a '.join(missing)}. {self.no_lab}")
            lab = self._make(options)
        elif options:
            asked = LabConfig.parse(**{**lab.config.model_dump(), **options})
            if asked != lab.config:
                if lab.status().state != "down":
                    raise ConfigError(f"Another lab is up: {lab!r}. End it first: %kdflow down")
                lab = self._make(asked.model_dump())
        return lab.up()

    def _make(self, options: dict[str, Any]) -> Lab:
        from kdflow_lab.lab import Lab

        lab = Lab(**options)
        self._keep(lab)
        return lab

    def _keep(self, lab: Lab) -> None:
        """Make a lab the notebook's."""
        self._lab = lab
        if VARIABLE not in self._names or _is_lab(self._names[VARIABLE]):
            self._names[VARIABLE] = lab
        else:
            self.say(f"Your variable {VARIABLE!r} is kept; the magics know the new lab.")


def _is_lab(value: Any) -> bool:
    """Whether a value is a `Lab`, without importing that module."""
    module = sys.modules.get("kdflow_lab.lab")
    return module is not None and isinstance(value, module.Lab)


class KDFlowMagics:
    """The magic of one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        """Work on the variables of `shell`."""
        self.shell = shell
        self.session = NotebookSession(shell.user_ns)

    @no_var_expand
    @needs_local_scope
    def kdflow(self, line: str, cell: str | None = None, local_ns: Any = None) -> Any:
        """Run a command of kdflow-lab: `%kdflow help` lists them."""
        try:
            return self._run(line, cell, {**self.shell.user_ns, **(local_ns or {})})
        except KDFlowLabError as error:
            _shorten(error)
            raise

    def _run(self, line: str, cell: str | None, names: dict[str, Any]) -> Any:
        words, values = split(line, names)
        if not words and cell is not None:
            raise ConfigError("A cell needs its command: %%kdflow distill, or %%kdflow sft.")
        if not words:
            self.session.say(overview(self.session.prefix))
            return None
        command = find(fill(words[0], values), self.session.prefix)
        prefix = self.session.prefix
        if "--help" in words[1:]:
            self.session.say(help_text(command, prefix=prefix))
            return None
        given = parse(command, words[1:], prefix=prefix, values=values)
        if cell is not None:
            given = self._with_body(command, given, yaml_body(cell, names))
        result = command.call(self.session, given)
        if command.starts_run and result is not None:
            self._show(result)
        elif command.name == "attach":
            for run in result.runs[-1:] if result is not None else ():
                self._show(run)
        return result

    def _with_body(
        self, command: Command, given: dict[str, Any], body: dict[str, Any]
    ) -> dict[str, Any]:
        """Join the options of the line with those of the cell."""
        if not command.takes_cell:
            takers = [one.name for one in COMMANDS.values() if one.takes_cell]
            raise ConfigError(
                f"%%kdflow {command.name}: only {', '.join(takers[:-1])} and {takers[-1]} take a "
                "cell."
            )
        known = command.known()
        for name in body:
            if name not in known:
                raise unknown_option(command, known, name, self.session.prefix)
            if name in given:
                raise ConfigError(f"Option {name!r} is given in the line and in the cell.")
        return given | body

    def _show(self, run: Any) -> None:
        """Show the figure of a run."""
        from IPython.display import display

        display(run.plot())

    @context_matcher(identifier=_TAG)
    def matcher(self, context: CompletionContext) -> Any:
        """Complete `%kdflow …`, also behind `run =`, and the body of `%%kdflow …`."""
        text = context.text_until_cursor
        first, *_ = context.full_text.split("\n")
        if first.startswith("%%kdflow ") and context.cursor_line > 0:
            command = COMMANDS.get(first.split()[1] if len(first.split()) > 1 else "")
            if command is None or not command.takes_cell:
                return {"completions": []}
            word, found = complete_yaml(text, command, self.session)
        else:
            before, magic, rest = text.rpartition("%kdflow ")
            if not magic or (before.strip("% ") and not before.rstrip().endswith("=")):
                return {"completions": []}
            word, found = complete_line(rest, self.session)
        return {
            "completions": [SimpleCompletion(one, type="kdflow") for one in found],
            "matched_fragment": word,
            "suppress": bool(found),
        }


def _shorten(error: KDFlowLabError) -> None:
    """Make an error show its message only; IPython's own `UsageError` would not stop "Run All"."""
    text = f"{type(error).__name__}: {error}"
    # a partial, for it can be pickled with the error
    error._render_traceback_ = partial(list, [text])  # type: ignore[attr-defined]


def load(shell: InteractiveShell) -> None:
    """Register the magic and its completion; a second time replaces the first.

    The lab of the first stays: it is the notebook's variable.
    """
    unload(shell)
    magics = KDFlowMagics(shell)
    shell.register_magic_function(magics.kdflow, "line_cell", "kdflow")  # type: ignore[arg-type]
    shell.Completer.custom_matchers.append(magics.matcher)


def unload(shell: InteractiveShell) -> None:
    """Take the magic and its completion away."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [one for one in matchers if getattr(one, "matcher_identifier", None) != _TAG]
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("kdflow", None)
