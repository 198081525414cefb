"""The comparison of several runs in plotly: a click on a name hides the run in every panel."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kdflow_lab.widgets._compare_data import Axes, Compared, Drawn
from kdflow_lab.widgets._compare_svg import RAW_OPACITY
from kdflow_lab.widgets._panels import GRID, INK
from kdflow_lab.widgets._svg import WIDTH
from kdflow_lab.widgets._table import CHARACTER

ROW_PX = 250
LEGEND_LINE_PX = 20
FEW_DECADES = 4
"""Of a logarithmic axis that has room for labels at 2 and 5, too."""
CLEAR = "rgba(0,0,0,0)"


def figure(data: Compared) -> go.Figure:
    """Build the figure of the runs as they are."""
    rows = -(-len(data.panels) // 2)
    drawing: Any = make_subplots(
        rows=rows,
        cols=2,
        subplot_titles=[_title(axes, data, number == 0) for number, axes in enumerate(data.panels)],
        vertical_spacing=0.36 / rows,
        horizontal_spacing=0.1,
    )
    for number, axes in enumerate(data.panels):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        for traces in (
            [_raw(run, axes, data) for run in data.runs if axes.smooth],
            [_mean(run, axes, first=number == 0) for run in data.runs],
            [trace for run in data.runs if (trace := _mark(run, axes))],
        ):
            if traces:
                count = len(traces)
                drawing.add_traces(traces, rows=[place["row"]] * count, cols=[place["col"]] * count)
        for step in data.fork_steps:
            line: dict[str, Any] = {"color": INK, "width": 1, "dash": "dot"}
            drawing.add_vline(x=step, line=line, **place)
        _style_panel(drawing, axes, data, number, place)
    _style(drawing, data, rows)
    return drawing


def _title(axes: Axes, data: Compared, explained: bool) -> str:
    said = f'   <span style="font-size:11px">{data.explanation}</span>' if explained else ""
    return f"<b>{axes.title}</b>{said}"


def _raw(run: Drawn, axes: Axes, data: Compared) -> go.Scatter:
    curve = run.curves[axes.quantity]
    return go.Scatter(
        x=curve.raw_steps,
        y=curve.raw,
        mode="lines",
        line={"color": run.look.colour, "width": 1},
        opacity=RAW_OPACITY[len(data.runs) > 2],
        hoverinfo="skip",
        legendgroup=run.label,
        showlegend=False,
    )


def _mean(run: Drawn, axes: Axes, *, first: bool) -> go.Scatter:
    curve = run.curves[axes.quantity]
    nothing = np.array([np.nan])  # a trace without any point would not stand in the legend
    return go.Scatter(
        x=curve.mean_steps if len(curve.mean) else nothing,
        y=curve.mean if len(curve.mean) else nothing,
        mode="lines+markers" if axes.points else "lines",
        line={"color": run.look.colour, "width": 2.2, "dash": run.look.dash},
        marker={"size": 7},
        # plotly reads names as HTML
        name=escape(run.legend if first else run.label, quote=False),
        hovertemplate="%{y:.4g}",
        legendgroup=run.label,
        showlegend=first,
    )


def _mark(run: Drawn, axes: Axes) -> go.Scatter | None:
    mark = run.mark(axes)
    if mark is None:
        return None
    return go.Scatter(
        x=[mark[0]],
        y=[mark[1]],
        mode="markers",
        marker={"size": 12, "color": run.look.colour, "line": {"color": "white", "width": 1.5}},
        text=[escape(f"forked from {run.fork}", quote=False)],
        hovertemplate="%{text}<extra></extra>",
        legendgroup=run.label,
        showlegend=False,
    )


def _style_panel(
    drawing: Any, axes: Axes, data: Compared, number: int, place: dict[str, Any]
) -> None:
    """Axes and title of one panel."""
    log = data.logarithmic(axes)
    drawing.update_yaxes(
        title_text=f"{axes.unit}, log" if log else axes.unit,
        type="log" if log else "linear",
        **({"dtick": "D2"} if log and data.decades(axes) < FEW_DECADES else {}),
        **place,
    )
    left = next(drawing.select_xaxes(**place)).domain[0]
    drawing.layout.annotations[number].update(x=left, xanchor="left", font_size=13)


def _style(drawing: Any, data: Compared, rows: int) -> None:
    """Legend and colours that suit light and dark pages, as in a run's own figure."""
    for axis in list(drawing.select_xaxes())[1:]:
        axis.matches = "x"  # zooming one panel zooms all
    drawing.update_xaxes(
        gridcolor=GRID,
        zerolinecolor=GRID,
        linecolor=GRID,
        title_text="step",
        title_standoff=4,
        title_font_size=12,
        range=[0, 1.01 * data.last_step],
    )
    drawing.update_yaxes(
        gridcolor=GRID,
        zerolinecolor=GRID,
        linecolor=GRID,
        title_standoff=6,
        title_font_size=12,
    )
    widest = 50 + CHARACTER * max(len(run.legend) for run in data.runs)
    legend = LEGEND_LINE_PX * math.ceil(len(data.runs) / max(1, WIDTH // widest))
    drawing.update_layout(
        template=go.layout.Template(),
        height=rows * ROW_PX + legend,
        margin={"l": 60, "r": 30, "t": 40 + legend, "b": 45},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "size": 12},
        legend={
            "orientation": "h",
            "tracegroupgap": 0,
            "x": 0,
            "y": 1 + 34 / (rows * ROW_PX - 85),
            "yanchor": "bottom",
            "xanchor": "left",
            "bgcolor": CLEAR,
        },
        hovermode="x unified",
        hoverlabel={"bgcolor": "rgba(40,40,40,0.9)", "font": {"color": "white"}},
        modebar={"bgcolor": CLEAR, "color": INK},
    )
