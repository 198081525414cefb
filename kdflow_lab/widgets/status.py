"""The header of a run's figure: state, progress, and buttons that work while the run trains.

The JavaScript is `/widgets/status.js`. It is an anywidget rather than a row of ipywidgets because a
click must show at once: a kernel that is busy with a cell hears of it only when the cell has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.progress import Summary
from kdflow_lab.widgets import esm

if TYPE_CHECKING:
    from kdflow_lab.run import Run

ANSWERS = {
    "pause": ("paused", "stopping"),
    "resume": ("running", "stopping"),
    "stop": ("stopping",),
}
"""The states that answer a command; the end of the run answers all."""


class StatusHeader(anywidget.AnyWidget):
    """State, progress bar and buttons of one run."""

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

    def __init__(self, run: Run, **traits: Any) -> None:
        """Make the header; `show` fills it."""
        super().__init__(name=run.name, **traits)
        self._run = run
        self._refused = ""
        self.on_msg(self._clicked)

    def show(self, now: Summary) -> None:
        """Show where the run stands; called by the figure's thread only."""
        with self.hold_sync():
            self.state, self.step, self.steps = now.state, now.step, now.steps or 0
            total = f"/{now.steps}" if now.steps else ""
            self.headline = f"step {now.step}{total} · {now.figures}"
            self.note = self._refused or now.note
            if now.ended or now.state in ANSWERS.get(self.asked, ()):
                self.asked = ""

    def _clicked(self, _: object, message: dict[str, Any], buffers: object) -> None:
        """Give a click to the run."""
        command = message.get("command")
        if command not in ANSWERS:
            return
        self.asked = command
        try:
            {"pause": self._run.pause, "resume": self._run.resume, "stop": self._run.stop}[
                command
            ]()
            self._refused = ""
        except KDFlowLabError as error:  # it ended between the click and now
            self._refused = self.note = str(error)
            self.asked = ""
