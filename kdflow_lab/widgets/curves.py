"""The live figure of a run: curves, state, and buttons.

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
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.bars import in_notebook
from kdflow_lab.errors import RunError
from kdflow_lab.progress import summary
from kdflow_lab.rundir import ENDED
from kdflow_lab.widgets import _static

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import DisplayHandle

    from kdflow_lab.run import Run
    from kdflow_lab.widgets.status import StatusHeader

POLL_S = 0.25
PATIENCE_S = 12.0
"""How long a page may take to load and draw plotly before data is sent to it anyway."""
KEPT_OPEN = 3
"""Live views of ended runs that stay open, for pages that were saved before the end."""

_views: list[RunFigure] = []
"""The figures with a live view, oldest first; at most one a run, so that none piles up."""


class _DrawnOnce:
    """True as soon as a page has drawn a `FigureWidget` for the first time.

    What is sent to a figure that the page still loads is lost, and an error there. A drawn figure
    reports its traces; a kernel that is busy with a cell hears that late, so patience ends.
    """

    def __init__(self, figure: Any) -> None:
        """Listen from now on."""
        self._until = time.monotonic() + PATIENCE_S
        self._reported = False
        figure.observe(self._report, names=["_js2py_traceDeltas", "_js2py_layoutDelta"])

    def _report(self, _: Any) -> None:
        self._reported = True

    def __bool__(self) -> bool:
        return self._reported or time.monotonic() > self._until


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

        from kdflow_lab.widgets.status import StatusHeader

        for other in [view for view in _views if view.run.path == self.run.path]:
            other.close()
        for other in [view for view in _views if not view._live][:-KEPT_OPEN]:
            other.close()
        _views.append(self)
        header = StatusHeader(self.run)
        header.show(summary(self._reader))
        self.widget = ipywidgets.VBox([header])
        self._live = True
        self._shell = get_ipython()
        self._shell.events.register("post_run_cell", self._at_end_of_cell)
        threading.Thread(
            target=self._follow,
            args=(self.widget, header),
            name=f"kdflow-figure-{self.run.name}",
            daemon=True,
        ).start()

    def _follow(self, box: ipywidgets.VBox, header: StatusHeader) -> None:
        """Keep the view at the state of the run until it ends; the only writer of the figure."""
        try:
            import plotly.graph_objects as go

            from kdflow_lab.widgets._plotly import empty_figure, fill
            from kdflow_lab.widgets._series import series

            run = type(self.run)(self.run.path)
            # The first FigureWidget takes seconds (5 MB of JavaScript): no cell waits for it here.
            figure = go.FigureWidget(empty_figure())
            figure._config = figure._config | {"responsive": True}
            drawn_once = _DrawnOnce(figure)
            if self._leave.is_set():
                figure.close()
                return
            box.children = (header, figure)
            drawn = None
            while not self._leave.wait(POLL_S):
                if not run.directory.config_file.exists():
                    raise RunError(f"{run.path} was deleted.")
                now, events = summary(run), run.events
                header.show(now)
                if drawn != (now.step, len(events)) and drawn_once:
                    drawn = (now.step, len(events))
                    data = series(run.records, events, steps=now.steps)
                    with self._lock:
                        # settled by the end of a cell: the page has no plot any more to fill
                        if self._live:
                            fill(figure, data)
                if now.ended:
                    self._settle()
                    return
        except Exception as error:  # else the thread would die without a word
            header.note = f"This figure no longer follows the run. {type(error).__name__}: {error}"

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
        for widget in (*self.widget.children, self.widget):
            widget.close()
        self.widget = None
