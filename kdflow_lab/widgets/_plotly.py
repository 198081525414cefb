"""The figure of a run in plotly: its empty form, and how new data enters it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kdflow_lab.widgets import _plotly_strip
from kdflow_lab.widgets._panels import GRID, INK, PANELS, STRIP_TITLE, Line, Panel, explanation
from kdflow_lab.widgets._series import Series
from kdflow_lab.widgets._timeline import PHASES

HEIGHT_PX = 680
RAW_OPACITY = 0.35
CLEAR = "rgba(0,0,0,0)"
DASHES = {"solid": "—", "dash": "- -", "dot": "···"}


def empty_figure() -> go.Figure:
    """Build the figure without data; `fill` puts data into it."""
    rights = [{"secondary_y": bool(panel.second_unit)} for panel in PANELS]
    figure = make_subplots(
        rows=3,
        cols=2,
        row_heights=[0.4, 0.4, 0.2],
        subplot_titles=[*(_title(panel) for panel in PANELS), _strip_title()],
        specs=[rights[:2], rights[2:], [{"colspan": 2}, None]],
        vertical_spacing=0.13,
        horizontal_spacing=0.1,
    )
    for panel, place in _places():
        for line in panel.lines:
            figure.add_traces(_traces(line), **_each(2, panel, line, place))
    figure.add_trace(_marks_trace(), row=1, col=1)
    for trace in _plotly_strip.traces():
        figure.add_trace(trace, row=3, col=1)
    _style(figure)
    _plotly_strip.style(figure)
    return figure


def fill(figure: Any, data: Series) -> None:
    """Put data into a `Figure` or `FigureWidget` of `empty_figure`; arrays stay numpy arrays.

    Lists would be checked element by element and sent as text: 18 ms instead of 1.5 ms for 20,000
    points. The batch sets the same properties on every trace: plotly's front end clears a property
    on the traces of a batch that do not set it.
    """
    lines, marks, strip = split(figure)
    with figure.batch_update():
        curves = [data.curves[line.quantity] for panel in PANELS for line in panel.lines]
        for curve, raw, mean in zip(curves, lines[::2], lines[1::2], strict=True):
            raw.x, raw.y = curve.raw_steps, curve.raw
            mean.x, mean.y = curve.mean_steps, curve.mean
        marks.x = np.array([mark.step for mark in data.marks], dtype=np.int32)
        marks.y = np.array([mark.loss for mark in data.marks], dtype=np.float32)
    title = _title(PANELS[0], explanation(data.window, marked=bool(data.marks)))
    with figure.batch_update():
        _plotly_strip.fill(figure, strip, data.timeline)
        if figure.layout.annotations[0].text != title:
            figure.layout.annotations[0].text = title
    texts = [mark.detail for mark in data.marks]
    if list(marks.text or ()) != texts:
        marks.text = texts


def split(figure: Any) -> tuple[list[Any], Any, list[Any]]:
    """Tell the traces apart: raw and mean of each line by turns; the marks; those of the strip."""
    count = 2 * sum(len(panel.lines) for panel in PANELS)
    traces = list(figure.data)
    return traces[:count], traces[count], traces[count + 1 :]


def _places() -> Iterator[tuple[Panel, dict[str, Any]]]:
    """Each panel with its row and column."""
    for number, panel in enumerate(PANELS):
        yield panel, {"row": number // 2 + 1, "col": number % 2 + 1}


def _title(panel: Panel, explained: str = "") -> str:
    """The panel's title, with the names of its lines as legend: plotly's own takes more room."""
    names = [
        f'<span style="color:{line.colour}">{DASHES[line.dash]} {line.label}</span>'
        for line in (panel.lines if len(panel.lines) > 1 else ())
    ]
    legend = "   ".join([*names, *([explained] if explained else [])])
    return f'<b>{panel.title}</b>   <span style="font-size:11px">{legend}</span>'


def _strip_title() -> str:
    """The strip's title with its legend."""
    legend = "   ".join(
        f'<span style="color:{phase.colour}">■ {phase.label}</span>' for phase in PHASES.values()
    )
    return f'<b>{STRIP_TITLE}</b>   <span style="font-size:11px">{legend}</span>'


def _each(count: int, panel: Panel, line: Line, place: dict[str, Any]) -> dict[str, Any]:
    """The place of traces as `add_traces` wants it: lists."""
    where: dict[str, Any] = {"rows": [place["row"]] * count, "cols": [place["col"]] * count}
    return where | ({"secondary_ys": [line.second] * count} if panel.second_unit else {})


def _traces(line: Line) -> list[go.Scatter]:
    """The thin raw line and the bold mean of one quantity."""
    raw = go.Scatter(
        mode="lines",
        line={"color": line.colour, "width": 1},
        opacity=RAW_OPACITY,
        hoverinfo="skip",
    )
    mean = go.Scatter(
        mode="lines",
        line={"color": line.colour, "width": 2.2, "dash": line.dash},
        name=line.label,
        hovertemplate="%{y:.4g}",
    )
    return [raw, mean]


def _marks_trace() -> go.Scatter:
    return go.Scatter(
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 10,
            "color": INK,
            "line": {"color": "white", "width": 1},
        },
        hovertemplate="step %{x}: %{text}<extra></extra>",
    )


def _style(figure: Any) -> None:
    """Axes, legends and colours that suit light and dark pages."""
    for panel, place in _places():
        figure.update_yaxes(
            title_text=panel.unit, rangemode="tozero" if panel.from_zero else "normal", **place
        )
        if panel.second_unit:
            figure.update_yaxes(
                title_text=panel.second_unit,
                range=[0, 100],
                tickmode="linear",
                tick0=0,
                dtick=25,
                showgrid=False,
                secondary_y=True,
                **place,
            )
    places = [place for _, place in _places()]
    for number, place in enumerate([*places, {"row": 3, "col": 1}]):
        left = next(figure.select_xaxes(**place)).domain[0]
        title = figure.layout.annotations[number]
        title.update(x=left, xanchor="left", font_size=13)
    for axis in list(figure.select_xaxes())[1:]:
        axis.matches = "x"  # zooming one panel zooms all
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    figure.update_yaxes(title_standoff=6, title_font_size=12)
    figure.update_xaxes(title_text="step", title_standoff=4, title_font_size=12, row=3)
    figure.update_layout(
        template=go.layout.Template(),
        showlegend=False,
        height=HEIGHT_PX,
        margin={"l": 60, "r": 60, "t": 40, "b": 45},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "size": 12},
        hovermode="x unified",
        hoverlabel={"bgcolor": "rgba(40,40,40,0.9)", "font": {"color": "white"}},
        modebar={"bgcolor": CLEAR, "color": INK},
        uirevision="kept",  # a zoom survives new data
    )
