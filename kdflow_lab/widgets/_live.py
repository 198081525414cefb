"""The plotly part of a live figure: made when somebody looks, filled by one thread, freed again."""

from __future__ import annotations

import time
from typing import Any

from kdflow_lab.widgets._series import Series

PATIENCE_S = 12.0
"""How long a page may take to load and draw plotly before data is sent to it anyway."""
DRAWN_S = 2.0
"""How long a page may take to draw new data before the next is sent anyway."""


class LivePlot:
    """A `FigureWidget` of a run; 5 MB of JavaScript and the data of its curves.

    What is sent to a figure that the page still loads is lost, and an error there; and a page that
    is sent more than it can draw falls behind. A drawn figure reports its traces; a kernel that is
    busy with a cell hears that late, so patience ends.
    """

    def __init__(self) -> None:
        """Make the widget without data; the first one of a kernel takes seconds."""
        import plotly.graph_objects as go

        from kdflow_lab.widgets._plotly import empty_figure

        self.figure: Any = go.FigureWidget(empty_figure())
        self.figure._config = self.figure._config | {"responsive": True}
        self.drawn: Any = None
        """What `fill` was last given as `version`."""
        self._until = time.monotonic() + PATIENCE_S
        self._reported = False
        self.figure.observe(self._report, names=["_js2py_traceDeltas", "_js2py_layoutDelta"])

    def _report(self, _: Any) -> None:
        self._reported = True

    @property
    def ready(self) -> bool:
        """Whether a page has drawn what it was sent, or had time to."""
        behind = not self._reported or self.figure._trace_edit_in_process
        return not behind or time.monotonic() > self._until

    def fill(self, data: Series, version: Any) -> None:
        """Put data in; by one thread only."""
        from kdflow_lab.widgets._plotly import fill

        fill(self.figure, data)
        self.drawn = version
        if self._reported:
            self._until = time.monotonic() + DRAWN_S

    def close(self) -> None:
        """Free it, here and on the page."""
        self.figure.close()
