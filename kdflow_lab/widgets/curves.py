"""The live figure of a run: curves, who waits for whom, buttons and knobs, memory and alarms.

`RunFigure` shows a run from its directory alone, so it can be made again at any time. While the run
lives, one thread polls the directory and is the only writer of the plotly `FigureWidget`. A run
that has ended needs neither: its figure is static at once.

A saved notebook holds no widgets. When the run ends, the live view is therefore replaced, by
`update_display`, with its static forms. That happens once, because JupyterLab builds the whole view
anew at each update. A message of a thread belongs to the cell that runs at that moment, and one
sent between two cells is lost by nbclient: so the end of the next cell sends it again.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.bars import in_notebook
from kdflow_lab.errors import RunError
from kdflow_lab.progress import Summary, summary
from kdflow_lab.rundir import ENDED
from kdflow_lab.widgets import _static
from kdflow_lab.widgets._advice import advice
from kdflow_lab.widgets._live import LivePlot

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import DisplayHandle

    from kdflow_lab.run import Run
    from kdflow_lab.widgets.health import RunHealth
    from kdflow_lab.widgets.status import StatusHeader

POLL_S = 0.25
FREED_AFTER_S = 10.0
"""How long no page may show the view before its plot is freed; it comes back when one does."""
LINGER_S = 3.0
"""How long a view that was replaced by its static forms is kept: the page lets it go meanwhile."""
KEPT_OPEN = 3
"""Live views of ended runs that stay open, for pages that were saved before the end."""

_views: list[RunFigure] = []
"""The figures with a live view, oldest first; at most one a run, so that none piles up."""


class RunFigure:
    """The figure of one run; a notebook shows it when it is a cell's last value."""

    def __init__(self, run: Run) -> None:
        """Nothing is read or shown yet."""
        self.run = run
        self.widget: Any = None
        """The live view (an `ipywidgets.VBox`), once it is shown for a run that lives."""
        self._handles: list[DisplayHandle] = []
        self._leave = threading.Event()
        self._lock = threading.Lock()  # over the reader and the handles
        self._reader = type(run)(run.path)  # a Run is read by one thread at a time
        self._live = False
        self._shell: Any = None
        self._config: dict[str, Any] = {}

    # -- static ---------------------------------------------------------------------------------

    def svg(self) -> str:
        """The figure as it is now, as an SVG document."""
        with self._lock:
            return _static.svg(self._reader)

    def save(self, path: str | Path) -> Path:
        """Write the figure as an SVG file."""
        file = Path(path)
        file.write_text(self.svg(), encoding="utf-8")
        return file

    def __repr__(self) -> str:
        """Where the run stands."""
        with self._lock:
            return str(summary(self._reader))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """All forms of the figure, for whoever asks without displaying."""
        with self._lock:
            return self._forms()

    def _forms(self) -> dict[str, Any]:
        """The mimebundle; the caller holds the lock."""
        if not self._live:
            return _static.bundle(self._reader, interactive=True)
        view = self.widget._repr_mimebundle_()
        return view | _static.bundle(self._reader, interactive=False)

    # -- live -----------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Show the figure; a living run's begins to follow it."""
        from IPython.display import DisplayHandle

        if self.widget is None and in_notebook() and self.run.state not in ENDED:
            self._go_live()
        handle = DisplayHandle()
        with self._lock:
            handle.display(self._forms(), raw=True)
            self._handles.append(handle)

    def _go_live(self) -> None:
        """Make the view and the thread that fills it."""
        import ipywidgets
        from IPython.core.getipython import get_ipython

        from kdflow_lab.widgets.health import RunHealth
        from kdflow_lab.widgets.status import StatusHeader

        for other in [view for view in _views if view.run.path == self.run.path]:
            other.close()
        for other in [view for view in _views if not view._live][:-KEPT_OPEN]:
            other.close()
        _views.append(self)
        self._config = self._reader.config
        header, health = StatusHeader(self.run), RunHealth()
        self._show(self._reader, None, header, health)
        self.widget = ipywidgets.VBox([header, health])
        self._live = True
        self._shell = get_ipython()
        self._shell.events.register("post_run_cell", self._at_end_of_cell)
        threading.Thread(
            target=self._follow,
            args=(self.widget, header, health),
            name=f"kdflow-figure-{self.run.name}",
            daemon=True,
        ).start()

    def _follow(self, box: ipywidgets.VBox, header: StatusHeader, health: RunHealth) -> None:
        """Keep the view at the state of the run until it ends; the only writer of the figure."""
        plot: LivePlot | None = None
        try:
            run = type(self.run)(self.run.path)
            while not self._leave.is_set():
                if not run.directory.config_file.exists():
                    raise RunError(f"{run.path} was deleted.")
                if header.unseen_s > FREED_AFTER_S:
                    plot = self._show_plot(box, plot, None)  # the cell was cleared
                elif plot is None:
                    # The first one takes seconds (5 MB of JavaScript): no cell waits for it here.
                    new = LivePlot()
                    if self._leave.is_set():
                        new.close()
                        return
                    plot = self._show_plot(box, plot, new)
                now = self._show(run, plot, header, health)
                if now.ended:
                    self._settle()
                    return
                self._leave.wait(POLL_S)
        except Exception as error:  # else the thread would die without a word
            header.note = f"This figure no longer follows the run. {type(error).__name__}: {error}"

    def _show_plot(
        self, box: ipywidgets.VBox, old: LivePlot | None, new: LivePlot | None
    ) -> LivePlot | None:
        """Put a plot between head and foot, or take it away and free it."""
        if new is not old:
            header, *_, health = box.children
            box.children = (header, health) if new is None else (header, new.figure, health)
            if old is not None:
                old.close()
        return new

    def _show(
        self, run: Run, plot: LivePlot | None, header: StatusHeader, health: RunHealth
    ) -> Summary:
        """Bring all parts of the view up to date; return where the run stands."""
        from kdflow_lab.widgets._series import series

        now, records, events = summary(run), run.records, run.events
        header.show(now)
        header.show_options(self._config, events, checkpoints=run.checkpoints)
        health.show(records, events)
        version = (now.step, len(events))
        if plot is None or plot.drawn == version:
            return now
        data = series(records, events, steps=now.steps)
        header.show_times(data.timeline, advice(records, self._config))
        if plot.ready and not header.unseen_s:  # a page whose cell was cleared has no plot to fill
            with self._lock:
                # settled by the end of a cell: the page has no plot any more to fill
                if self._live:
                    plot.fill(data, version)
        return now

    def _settle(self) -> None:
        """Put the static forms of the ended run in the place of the live view."""
        with self._lock:
            self._live = False
            forms = self._forms()
            for handle in self._handles:
                handle.update(forms, raw=True)

    def _at_end_of_cell(self, *_: Any) -> None:
        """Settle, once, as a part of the cell that just ran, when the run has ended."""
        if self._reader.state in ENDED:
            self._shell.events.unregister("post_run_cell", self._at_end_of_cell)
            self._settle()

    def close(self) -> None:
        """End the live view; its outputs become static. The run goes on."""
        if self not in _views:
            return
        _views.remove(self)
        self._leave.set()
        with contextlib.suppress(ValueError):  # it settled before
            self._shell.events.unregister("post_run_cell", self._at_end_of_cell)
        if self._live:
            self._settle()
        # a page that still draws what it was sent would report it to a widget that is gone
        box, self.widget = self.widget, None
        timer = threading.Timer(LINGER_S, _close, args=(box,))
        timer.daemon = True
        timer.start()


def _close(box: ipywidgets.VBox) -> None:
    """Free a view, here and on the page."""
    for widget in (*box.children, box):
        widget.close()
