"""The comparison of several runs as an SVG text: what a saved notebook, or a file, shows.

Drawn by hand as a run's own figure is (`_svg`), on panels of the same size, and like it without a
background, so that it suits light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from kdflow_lab.widgets._compare_data import Axes, Compared, Drawn
from kdflow_lab.widgets._panels import INK
from kdflow_lab.widgets._series import Floats
from kdflow_lab.widgets._svg import (
    MARGIN_LEFT,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    STRIDE_X,
    STRIDE_Y,
    WIDTH,
    _number,
    _path,
    _y,
    ticks,
)
from kdflow_lab.widgets._table import CHARACTER, DASHES, Table

LEGEND_TOP, LEGEND_LINE = 44, 20
RAW_OPACITY = (0.35, 0.2)
"""Of the thin lines, of one or two runs and of more: many noises over each other hide the means."""


def draw(data: Compared, headline: str, tables: Sequence[Table] = ()) -> str:
    """Draw the panels below a headline and a legend, and tables below the panels.

    Returns:
        An SVG document that scales to the width of the page.
    """
    legend, y = _legend(data)
    body = [legend]
    top = y + 34
    for number, axes in enumerate(data.panels):
        x = MARGIN_LEFT + STRIDE_X * (number % 2)
        y = top + STRIDE_Y * (number // 2)
        body.append(f'<g transform="translate({x},{y})">')
        body += _panel(axes, data, explained=number == 0)
        body.append("</g>")
    height = top + STRIDE_Y * math.ceil(len(data.panels) / 2) - 28
    for table in tables:
        drawn, taken = table.svg(WIDTH - 8)
        body.append(f'<g transform="translate(4,{height + 24})">{drawn}</g>')
        height += 24 + taken
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
            f"<title>{escape(headline)}</title>",
            f'<text x="4" y="20" font-size="14" font-weight="bold">{escape(headline)}</text>',
            *body,
            "</svg>",
        ]
    )


def _legend(data: Compared) -> tuple[str, int]:
    """The runs' names beside their lines, in as many lines as they need, and where they end."""
    parts, x, y = [], 4.0, LEGEND_TOP
    for run in data.runs:
        wide = 34 + CHARACTER * len(run.legend) + 22
        if x > 4 and x + wide > WIDTH:
            x, y = 4.0, y + LEGEND_LINE
        parts.append(
            f'<path d="M{x:.0f} {y - 4}h28" stroke="{run.look.colour}" stroke-width="2.5"'
            f"{DASHES[run.look.dash]}/>"
            f'<text x="{x + 34:.0f}" y="{y}">{escape(run.legend)}</text>'
        )
        x += wide
    return "\n".join(parts), y


def _panel(axes: Axes, data: Compared, *, explained: bool) -> list[str]:
    """Title, axes, lines and fork marks of one panel, with its corner at the origin."""
    log, last = data.logarithmic(axes), data.last_step
    values = np.concatenate([run.curves[axes.quantity].raw for run in data.runs])
    places = _places(values, log=log)
    unit = f"{axes.unit}, log" if log else axes.unit
    parts = [
        f'<text y="-10" font-size="13" font-weight="bold">{escape(axes.title)}</text>',
        f'<text transform="translate(-46,{PANEL_HEIGHT / 2}) rotate(-90)" '
        f'text-anchor="middle">{unit}</text>',
        f'<text x="{PANEL_WIDTH / 2}" y="{PANEL_HEIGHT + 33}" text-anchor="middle">step</text>',
    ]
    if explained:
        parts.append(
            f'<text x="{PANEL_WIDTH}" y="-10" text-anchor="end" font-size="11">'
            f"{data.explanation}</text>"
        )
    for place in places:
        y = _y(place, places)
        text = _number(round(10**place, 12)) if log else _number(place)
        parts.append(
            f'<path d="M0 {y:.1f}H{PANEL_WIDTH}" stroke="#808080" stroke-opacity=".25"/>'
            f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for tick in [tick for tick in ticks(0, last) if tick <= last and tick == int(tick)]:
        x = PANEL_WIDTH * tick / last
        parts.append(
            f'<path d="M{x:.1f} {PANEL_HEIGHT}v4" stroke="{INK}"/>'
            f'<text x="{x:.1f}" y="{PANEL_HEIGHT + 17}" text-anchor="middle">{_number(tick)}</text>'
        )
    for step in data.fork_steps:
        x = PANEL_WIDTH * step / last
        parts.append(f'<path d="M{x:.1f} 0V{PANEL_HEIGHT}" stroke="{INK}" stroke-dasharray="1 3"/>')
    if not np.isfinite(values).any():
        middle = f'x="{PANEL_WIDTH / 2}" y="{PANEL_HEIGHT / 2}" text-anchor="middle"'
        return [*parts, f"<text {middle}>nothing measured</text>"]
    # all thin lines lie below all bold ones, and the marks above everything
    return [
        *parts,
        *(_raw(run, axes, data, places, log=log) for run in data.runs if axes.smooth),
        *(_mean(run, axes, data, places, log=log) for run in data.runs),
        *(_mark(run, axes, data, places, log=log) for run in data.runs),
    ]


def _places(values: Floats, *, log: bool) -> list[float]:
    """Where the ticks of an axis stand: values, or their decadic logarithms."""
    finite = values[np.isfinite(values)]
    if not log:
        return ticks(float(finite.min()), float(finite.max())) if len(finite) else [0.0, 1.0]
    finite = finite[finite > 0]
    low, high = float(finite.min()), float(finite.max())
    first, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, end + 1)
    if len(decades) > 4:  # every n-th decade, beginning at the first
        every = math.ceil(len(decades) / 6)
        return [float(k) for k in range(first, end + every, every)]
    fine = [math.log10(m) + k for k in range(first, end) for m in (1, 2, 5)] + [float(end)]
    below = max((p for p in fine if 10**p <= low * 1.0001), default=fine[0])
    above = min((p for p in fine if 10**p >= high * 0.9999), default=fine[-1])
    return [place for place in fine if below <= place <= above]


def _positions(values: Floats, *, log: bool) -> Floats:
    """Values as they stand along an axis; what a logarithm does not know is a gap."""
    return np.log10(np.where(values > 0, values, np.nan)) if log else values


def _raw(run: Drawn, axes: Axes, data: Compared, places: list[float], *, log: bool) -> str:
    curve = run.curves[axes.quantity]
    path = _path(curve.raw_steps, _positions(curve.raw, log=log), places, data.last_step)
    look = f'stroke-width="1" stroke-opacity="{RAW_OPACITY[len(data.runs) > 2]}"'
    return f'<path d="{path}" fill="none" stroke="{run.look.colour}" {look}/>' if path else ""


def _mean(run: Drawn, axes: Axes, data: Compared, places: list[float], *, log: bool) -> str:
    curve = run.curves[axes.quantity]
    ys = _positions(curve.mean, log=log)
    path = _path(curve.mean_steps, ys, places, data.last_step)
    if not path:
        return ""
    drawn = (
        f'<path d="{path}" fill="none" stroke="{run.look.colour}" stroke-width="2.2"'
        f"{DASHES[run.look.dash]}/>"
    )
    if not axes.points:
        return drawn
    dots = [
        f'<circle cx="{PANEL_WIDTH * step / data.last_step:.1f}" cy="{_y(y, places):.1f}" r="3.2" '
        f'fill="{run.look.colour}"/>'
        for step, y in zip(curve.mean_steps.tolist(), ys.tolist(), strict=True)
        if math.isfinite(y)
    ]
    return drawn + "".join(dots)


def _mark(run: Drawn, axes: Axes, data: Compared, places: list[float], *, log: bool) -> str:
    """A dot where a fork's line begins, with its parent as tooltip."""
    mark = run.mark(axes)
    if mark is None or (log and mark[1] <= 0):
        return ""
    x = PANEL_WIDTH * mark[0] / data.last_step
    y = _y(math.log10(mark[1]) if log else mark[1], places)
    return (
        f'<circle class="fork" cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{run.look.colour}" '
        f'stroke="#fff" stroke-width="1.5"><title>{escape(run.legend)}</title></circle>'
    )
