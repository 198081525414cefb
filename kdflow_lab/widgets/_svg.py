"""The figure of a run as an SVG text: what a saved notebook shows where no JavaScript runs.

Written by hand: the drawing needs polylines and a few labels only, is made anew while the run goes
on, takes about a millisecond, needs no plotting library and adapts to dark pages by having no
background of its own.
"""

from __future__ import annotations

import math
import textwrap
from html import escape

import numpy as np

from kdflow_lab.widgets import _svg_strip
from kdflow_lab.widgets._panels import INK, PANELS, Line, Panel, explanation
from kdflow_lab.widgets._series import Floats, Mark, Series, Steps

WIDTH = 960
PANELS_HEIGHT = 500
"""Of headline and panels; the strip, the advice and the changes come below."""
LINE_HEIGHT = 17
MOST_MARKS = 12
"""Changes that are listed in words; all are marked on the curve."""
HEADLINE = 112
"""Characters of a headline that fit."""
MARGIN_LEFT, MARGIN_TOP = 58, 62
PANEL_WIDTH, PANEL_HEIGHT = 362, 158
STRIDE_X, STRIDE_Y = 475, 232
DASHES = {"solid": "", "dash": ' stroke-dasharray="7 4"', "dot": ' stroke-dasharray="2 3"'}


def draw(data: Series, headline: str, *, advice: str = "") -> str:
    """Draw the four panels below a headline, and below them who waits for whom.

    Args:
        data: The series, already thinned to a few hundred points.
        headline: State, step and figures of the run.
        advice: One line about who waits; may be empty.

    Returns:
        An SVG document of `WIDTH` and `height(data, advice)` that scales to the width of the page.
    """
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {WIDTH} {height(data, advice)}" width="{WIDTH}" '
        f'role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(headline)}</title>",
        f'<text x="4" y="20" font-size="14" font-weight="bold">{escape(_fitting(headline))}</text>',
    ]
    last = max((int(c.raw_steps[-1]) for c in data.curves.values() if len(c.raw_steps)), default=1)
    for number, panel in enumerate(PANELS):
        x = MARGIN_LEFT + STRIDE_X * (number % 2)
        y = MARGIN_TOP + STRIDE_Y * (number // 2)
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel(panel, data, last, with_x_title=number >= 2)
        parts.append("</g>")
    parts.append(f'<g transform="translate({MARGIN_LEFT},{PANELS_HEIGHT + 30})">')
    parts += _svg_strip.strip(data.timeline, width=STRIDE_X + PANEL_WIDTH, last=last)
    parts.append("</g>")
    y = PANELS_HEIGHT + 30 + _svg_strip.height(data.timeline) + 14
    for text in _lines_below(data, advice):
        parts.append(f'<text x="{MARGIN_LEFT}" y="{y}">{escape(text)}</text>')
        y += LINE_HEIGHT
    parts.append("</svg>")
    return "\n".join(parts)


def height(data: Series, advice: str = "") -> int:
    """Height of a drawing in pixels."""
    below = LINE_HEIGHT * len(_lines_below(data, advice))
    return PANELS_HEIGHT + 30 + _svg_strip.height(data.timeline) + 10 + below


def _lines_below(data: Series, advice: str) -> list[str]:
    """The advice, and the newest changes: a picture on a web page shows no tooltips."""
    lines = textwrap.wrap(advice, HEADLINE + 26)
    shown = data.marks[-MOST_MARKS:]
    if len(shown) < len(data.marks):
        lines.append(f"◆ {len(data.marks) - len(shown)} earlier changes")
    return lines + [_fitting(f"◆ step {mark.step}: {mark.detail}") for mark in shown]


def _fitting(headline: str) -> str:
    """As much of a headline as the width shows; the document's title has all of it."""
    return headline if len(headline) <= HEADLINE else f"{headline[: HEADLINE - 1]}…"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / count <= m * magnitude * 1.0001)
    first, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 12 - math.floor(math.log10(step))  # enough to tell any two ticks apart
    return [round(k * step, digits) for k in range(first, max(end, first + 1) + 1)]


def _panel(panel: Panel, data: Series, last: int, *, with_x_title: bool) -> list[str]:
    """Title, legend, axes and lines of one panel, with its corner at the origin."""
    left = _scale([line for line in panel.lines if not line.second], data, panel.from_zero)
    right = [0.0, 25.0, 50.0, 75.0, 100.0]
    steps = [tick for tick in ticks(0, last) if tick <= last and tick == int(tick)]
    parts = [f'<text y="-10" font-size="13" font-weight="bold">{escape(panel.title)}</text>']
    parts += _legend(panel, data)
    for tick in left:
        y = _y(tick, left)
        parts.append(
            f'<path d="M0 {y:.1f}H{PANEL_WIDTH}" stroke="#808080" stroke-opacity=".25"/>'
            f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in right if panel.second_unit else []:
        parts.append(f'<text x="{PANEL_WIDTH + 6}" y="{_y(tick, right) + 4:.1f}">{tick:g}</text>')
    for tick in steps:
        x = PANEL_WIDTH * tick / last
        parts.append(
            f'<path d="M{x:.1f} {PANEL_HEIGHT}v4" stroke="{INK}"/>'
            f'<text x="{x:.1f}" y="{PANEL_HEIGHT + 17}" text-anchor="middle">{_number(tick)}</text>'
        )
    turned = f"translate({{}},{PANEL_HEIGHT / 2}) rotate(-90)"
    parts.append(f'<text transform="{turned.format(-46)}" text-anchor="middle">{panel.unit}</text>')
    if panel.second_unit:
        parts.append(
            f'<text transform="{turned.format(PANEL_WIDTH + 42)}" text-anchor="middle">'
            f"{panel.second_unit}</text>"
        )
    if with_x_title:
        parts.append(
            f'<text x="{PANEL_WIDTH / 2}" y="{PANEL_HEIGHT + 33}" text-anchor="middle">step</text>'
        )
    for line in panel.lines:
        curve, axis = data.curves[line.quantity], right if line.second else left
        thin, bold = 'stroke-width="1" stroke-opacity=".35"', f'stroke-width="2"{DASHES[line.dash]}'
        for xs, ys, look in (
            (curve.raw_steps, curve.raw, thin),
            (curve.mean_steps, curve.mean, bold),
        ):
            path = _path(xs, ys, axis, last)
            parts.append(
                f'<path d="{path}" fill="none" stroke="{line.colour}" {look}/>' if path else ""
            )
    if panel is PANELS[0]:
        parts += [_mark(mark, left, last) for mark in data.marks if math.isfinite(mark.loss)]
    if all(data.curves[line.quantity].empty for line in panel.lines):
        middle = f'x="{PANEL_WIDTH / 2}" y="{PANEL_HEIGHT / 2}" text-anchor="middle"'
        parts.append(f"<text {middle}>nothing measured</text>")
    return parts


def _scale(lines: list[Line], data: Series, from_zero: bool) -> list[float]:
    """Ticks that hold all values of these lines."""
    curves = [data.curves[line.quantity].raw for line in lines]
    finite = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    if not len(finite):
        return [0.0, 1.0]
    low = 0.0 if from_zero else float(finite.min())
    return ticks(low, float(finite.max()))


def _y(value: float, axis: list[float]) -> float:
    return PANEL_HEIGHT * (1 - (value - axis[0]) / (axis[-1] - axis[0]))


def _path(xs: Steps, ys: Floats, axis: list[float], last: int) -> str:
    """The data of an SVG path; a gap where a value is missing."""
    commands, pen = [], "M"
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        commands.append(f"{pen}{PANEL_WIDTH * x / last:.1f} {_y(y, axis):.1f}")
        pen = "L"
    return "".join(commands)


def _legend(panel: Panel, data: Series) -> list[str]:
    """Names of the lines, right-aligned above the panel."""
    if panel is PANELS[0]:
        text = explanation(data.window, marked=bool(data.marks))
        return [f'<text x="{PANEL_WIDTH}" y="-10" text-anchor="end">{text}</text>']
    parts, x = [], float(PANEL_WIDTH)
    for line in reversed(panel.lines if len(panel.lines) > 1 else ()):
        x -= 6.4 * len(line.label)
        parts.append(f'<text x="{x:.0f}" y="-10">{escape(line.label)}</text>')
        parts.append(
            f'<path d="M{x - 26:.0f} -14h22" stroke="{line.colour}" stroke-width="2"'
            f"{DASHES[line.dash]}/>"
        )
        x -= 36
    return parts


def _mark(mark: Mark, axis: list[float], last: int) -> str:
    """A diamond where an option was changed, with the change as its tooltip."""
    x, y = PANEL_WIDTH * mark.step / last, _y(mark.loss, axis)
    return (
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z" stroke="#fff">'
        f"<title>step {mark.step}: {escape(mark.detail)}</title></path>"
        f'<text x="{x + 8:.1f}" y="{y - 6:.1f}" font-size="11">{escape(mark.text)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.10g}"
