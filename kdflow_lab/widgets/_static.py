"""The static forms of a run's figure: what a saved notebook keeps."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

from kdflow_lab.progress import summary
from kdflow_lab.widgets._advice import advice
from kdflow_lab.widgets._series import Series, series
from kdflow_lab.widgets._svg import draw

if TYPE_CHECKING:
    from kdflow_lab.run import Run

POINTS = 400
"""Raw points a curve: a long run's SVG stays near 50 kB, its plotly JSON too."""
PLOTLY_MIME = "application/vnd.plotly.v1+json"


def svg(run: Run) -> str:
    """Draw the run as it is now as an SVG document."""
    return _svg_and_series(run)[0]


def bundle(run: Run, *, interactive: bool) -> dict[str, Any]:
    """Build the mimebundle: SVG and one line of text, for every viewer.

    Args:
        run: The run to draw.
        interactive: Add plotly JSON, which JupyterLab and VS Code draw without a kernel. It is left
            out while a live view is shown instead.
    """
    text, data = _svg_and_series(run)
    forms: dict[str, Any] = {"image/svg+xml": text, "text/plain": str(summary(run))}
    if interactive:
        from kdflow_lab.widgets._plotly import empty_figure, fill

        figure = empty_figure()
        fill(figure, data)
        title = html.escape(forms["text/plain"], quote=False)  # plotly reads titles as HTML
        figure.update_layout(title={"text": title, "x": 0, "font_size": 13})
        figure.update_layout(margin_t=75)
        forms[PLOTLY_MIME] = json.loads(figure.to_json() or "{}")
    return forms


def _svg_and_series(run: Run) -> tuple[str, Series]:
    now = summary(run)
    data = series(run.records, run.events, steps=now.steps, points=POINTS)
    return draw(data, str(now), advice=advice(run.records, run.config)), data
