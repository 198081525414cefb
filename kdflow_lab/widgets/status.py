"""The head of a run's figure: state, progress, buttons and knobs that work while the run trains.

The JavaScript is `/widgets/status.js`. It is an anywidget rather than a row of ipywidgets because a
click must show at once: a kernel that is busy with a cell hears of it only when the cell has ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.progress import Summary
from kdflow_lab.widgets import esm
from kdflow_lab.widgets._knobs import fork_fields, in_force, knobs, parsed
from kdflow_lab.widgets._series import changes_in_words
from kdflow_lab.widgets._timeline import Timeline, phase_words, words

if TYPE_CHECKING:
    from kdflow_lab.run import Run

ANSWERS = {
    "pause": ("paused", "stopping"),
    "resume": ("running", "stopping"),
    "stop": ("stopping",),
    "checkpoint": ("stopping",),
}
"""The states that answer a command; the end of the run answers all, and so does an event with the
command's id."""
ANSWERING = ("set", "done", "warning", "paused", "resumed", "stopping")


class StatusHeader(anywidget.AnyWidget):
    """State, progress bar, buttons, knobs and advice of one run."""

    _esm = esm("status")

    name = traitlets.Unicode().tag(sync=True)
    state = traitlets.Unicode("starting").tag(sync=True)
    headline = traitlets.Unicode().tag(sync=True)
    """Step, loss, speed and time in one line."""
    note = traitlets.Unicode().tag(sync=True)
    """A warning, why the run failed, or why a button could not do its work."""
    step = traitlets.Int(0).tag(sync=True)
    steps = traitlets.Int(0).tag(sync=True)
    """Steps asked for; 0 until they are known."""
    asked = traitlets.Unicode().tag(sync=True)
    """The command that was clicked and that the run has not answered yet."""

    knobs = traitlets.List().tag(sync=True)
    """Options that can be changed; see `kdflow_lab.widgets._knobs.Knob`."""
    pending = traitlets.Dict().tag(sync=True)
    """By knob: the value that was asked for and that the run has not answered yet."""
    errors = traitlets.Dict().tag(sync=True)
    """By knob, and `fork`: why the last value was refused."""
    settled = traitlets.Unicode().tag(sync=True)
    """The newest change: which, from which step on, and by whom."""
    advice = traitlets.Unicode().tag(sync=True)
    """Who waits for whom, and what would help."""
    idle = traitlets.Unicode().tag(sync=True)
    """The idle share of every role, and the seconds of each phase."""
    checkpoints = traitlets.List(traitlets.Int()).tag(sync=True)
    """Steps that a fork may begin from."""
    fork_fields = traitlets.List().tag(sync=True)
    """Options that a fork may change, as `knobs`."""
    forked = traitlets.Dict().tag(sync=True)
    """The newest fork: its `name`, the `step` it begins from, and the `code` that opens it."""

    def __init__(self, run: Run, **traits: Any) -> None:
        """Make the header; `show` fills it."""
        super().__init__(name=run.name, **traits)
        self._run = run
        self._refused = ""
        self._ids: dict[str, str] = {}  # of what is pending: by knob or `asked`, the command's id
        self._views = 0  # pages' views of this header
        self._hidden_at = 0.0
        self._answering = threading.Lock()  # a click and the figure's thread write the same traits
        self.on_msg(self._clicked)

    # -- what the run says, by the figure's thread ------------------------------------------------

    def show(self, now: Summary) -> None:
        """Show where the run stands; called by the figure's thread only."""
        with self._answering, self.hold_sync():
            self.state, self.step, self.steps = now.state, now.step, now.steps or 0
            total = f"/{now.steps}" if now.steps else ""
            self.headline = f"step {now.step}{total} · {now.figures}"
            self.note = self._refused or now.note
            if now.ended or now.state in ANSWERS.get(self.asked, ()):
                self.asked = ""
            if now.ended:
                self.pending = {}

    def show_options(
        self,
        config: Mapping[str, Any],
        events: Sequence[Mapping[str, Any]],
        *,
        checkpoints: Sequence[int] = (),
    ) -> None:
        """Show the options in force, and which of the changes asked for here were answered."""
        now = in_force(config, events)
        with self._answering, self.hold_sync():
            self.knobs, self.fork_fields = knobs(now), fork_fields(now)
            self.checkpoints = list(checkpoints)
            self.settled = _newest_change(events)
            for event in reversed(events):
                if not self._ids:
                    return
                if event["event"] in ANSWERING and event.get("id"):
                    self._take_answer(event)

    def show_times(self, line: Timeline, advice: str) -> None:
        """Show who waited in the last steps; called by the figure's thread only."""
        with self.hold_sync():
            self.advice = advice
            said = f"Idle, last {line.steps} steps: {words(line)}" if line.recent else ""
            phases = f" · seconds a step: {phase_words(line)}" if line.seconds else ""
            self.idle = said + phases

    @property
    def unseen_s(self) -> float:
        """Seconds since the last page closed its view; 0 while one shows it, or none ever did."""
        return 0.0 if self._views or not self._hidden_at else time.monotonic() - self._hidden_at

    def _take_answer(self, event: Mapping[str, Any]) -> None:
        """Hear the run's answer to what was asked here; the caller holds the lock."""
        for what in [one for one, asked in self._ids.items() if asked == event["id"]]:
            del self._ids[what]
            if what == "asked":
                if event["event"] == "warning":
                    self._refused = self.note = str(event.get("message", ""))
                self.asked = ""
                continue
            self.pending = {name: value for name, value in self.pending.items() if name != what}
            if event["event"] == "warning":
                self.errors = {**self.errors, what: str(event.get("message", ""))}

    # -- what the page says, by the kernel's main thread ------------------------------------------

    def _clicked(self, _: object, message: dict[str, Any], buffers: object) -> None:
        """Give a click to the run."""
        command = message.get("command")
        if command == "set":
            self._set(str(message.get("name")), str(message.get("value")))
        elif command == "forget":
            with self._answering:
                name = message.get("name")
                self.errors = {key: text for key, text in self.errors.items() if key != name}
        elif command in ("shown", "hidden"):
            self._views = max(0, self._views + (1 if command == "shown" else -1))
            self._hidden_at = time.monotonic()
        elif command == "fork":
            self._fork(message.get("step"), dict(message.get("changes") or {}))
        elif command in ANSWERS:
            self._command(command)

    def _command(self, command: str) -> None:
        with self._answering:
            self.asked = command
            try:
                if command == "resume":
                    self._run.resume()
                else:
                    self._ids["asked"] = self._run.request(command, by=_me())
                self._refused = ""
            except KDFlowLabError as error:  # it ended between the click and now
                self._refused = self.note = str(error)
                self.asked = ""

    def _set(self, name: str, value: str) -> None:
        """Change an option; a value that does not fit is answered at its knob."""
        with self._answering:
            self.pending = {**self.pending, name: value}
            self.errors = {key: text for key, text in self.errors.items() if key != name}
            try:
                self._ids[name] = self._run.request("set", {name: parsed(name, value)}, by=_me())
            except KDFlowLabError as error:
                self.errors = {**self.errors, name: str(error)}
                self.pending = {key: one for key, one in self.pending.items() if key != name}

    def _fork(self, step: int | None, changes: dict[str, str]) -> None:
        """Make a fork, and say how it is opened; what does not fit is answered in the form."""
        given = {name: parsed(name, text) for name, text in changes.items() if text.strip()}
        with self._answering:
            self.pending = {**self.pending, "fork": "…"}
            errors = {key: text for key, text in self.errors.items() if key != "fork"}
            try:
                fork = self._run.fork(step=step, **given)
                begins = (fork.parent or {}).get("step")
                self.forked = {"name": fork.name, "step": begins, "code": _opening(fork.path)}
            except KDFlowLabError as error:
                errors["fork"] = str(error)
            self.errors = errors
            self.pending = {key: one for key, one in self.pending.items() if key != "fork"}


def _me() -> str:
    """Who asks, for the run's events and the marks on its curve."""
    return f"figure, pid {os.getpid()}"


def _opening(path: Path) -> str:
    """The line of code that opens a run."""
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f'kd.open_run("{place}").plot()'


def _newest_change(events: Sequence[Mapping[str, Any]]) -> str:
    for event in reversed(events):
        if event["event"] == "set" and not event.get("replayed"):
            said = changes_in_words(event.get("changes", {}))
            return (
                f"{said} from step {event.get('step')} on, by {event.get('by') or 'nobody named'}"
            )
    return ""
