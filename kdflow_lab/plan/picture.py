"""The plan as HTML: a stacked bar for every process and device as SVG, and a table below it.

Static and self-contained, readable on light and dark pages: text takes the page's colour.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kdflow_lab.units import size

if TYPE_CHECKING:
    from kdflow_lab.plan.memory import Process
    from kdflow_lab.plan.report import Plan

WIDTH, LABEL, VALUE = 860, 150, 90
ROW, BAR = 26, 17
COLOURS = {
    "interpreter and libraries": "#999999",
    "weights": "#0072B2",
    "gathered weights": "#56B4E9",
    "teacher's head": "#0072B2",
    "optimizer": "#009E73",
    "gradients": "#F0E442",
    "head's gradient": "#F0E442",
    "activations": "#D55E00",
    "chunk of logits": "#E69F00",
    "ring": "#CC79A7",
}
"""Okabe and Ito's; parts that are alike share one, and the second is paler."""
PALE = ("teacher's head", "head's gradient", "mean teacher")
OTHER = "#CC79A7"
SMALLEST = 0.004
"""Parts below this share of the longest bar are not drawn; the table has them."""


def html_of(plan: Plan) -> str:
    """Draw the plan."""
    mark, colour = ("✓ fits", "#009E73") if plan.fits else ("✗ does not fit", "#D55E00")
    parts = [
        "<div style='max-width:900px'>",
        f"<p><strong style='color:{colour}'>{mark}</strong> · {escape(plan.basis)}<br>"
        f"{escape(plan.time_line)}</p>",
        svg_of(plan),
        "<table><thead><tr><th style='text-align:left'>where</th><th>needed</th><th>free</th>"
        "<th></th></tr></thead><tbody>",
    ]
    for room in plan.rooms:
        free = "unknown here" if room.free is None else size(room.free)
        parts.append(
            f"<tr><th style='text-align:left'>{escape(room.device)}</th><td>{size(room.needed)}"
            f"</td><td>{free}</td><td>{'✓' if room.fits else '✗'}</td></tr>"
        )
    parts.append("</tbody></table>")
    if not plan.fits:
        lines = plan._advice()
        parts.append("<ul>")
        parts += [f"<li>{escape(line.strip().removeprefix('-> '))}</li>" for line in lines]
        parts.append("</ul>")
    if plan.notes:
        parts.append("<p style='opacity:.8'>" + "<br>".join(map(escape, plan.notes)) + "</p>")
    parts.append(_details(plan.prediction.processes))
    return "".join([*parts, "</div>"])


def _details(processes: tuple[Process, ...]) -> str:
    """Every part of every process, folded away."""
    rows = []
    for one in processes:
        for name, value in sorted(one.parts.items(), key=lambda part: -part[1]):
            rows.append(
                f"<tr><td style='text-align:left'>{escape(one.name)}</td>"
                f"<td style='text-align:left'>{escape(one.device)}</td>"
                f"<td style='text-align:left'>{escape(name)}</td><td>{size(value)}</td></tr>"
            )
    return (
        "<details><summary>every part</summary><table><tbody>"
        + "".join(rows)
        + "</tbody></table></details>"
    )


def svg_of(plan: Plan) -> str:
    """Draw a bar for every process, and below each device what is free."""
    processes = plan.prediction.processes
    longest = max((one.total for one in processes), default=1.0) or 1.0
    scale = (WIDTH - LABEL - VALUE) / longest
    names = list(dict.fromkeys(name for one in processes for name in one.parts))
    drawn = [
        name
        for name in names
        if any(one.parts.get(name, 0.0) > SMALLEST * longest for one in processes)
    ]
    keys = -(-len(drawn) // 4)
    height = len(processes) * ROW + keys * 20 + 14
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
        f"width='{WIDTH}' style='max-width:100%' role='img' font-family='sans-serif' "
        "font-size='12' fill='currentColor'>",
        "<title>Memory by process</title>",
    ]
    y = 4
    for one in processes:
        at = "" if one.device == "host" else f" · {one.device}"
        lines.append(f"<text x='0' y='{y + 13}'>{escape(one.name + at)}</text>")
        x = float(LABEL)
        for name in names:
            width = scale * one.parts.get(name, 0.0)
            if width < scale * SMALLEST * longest:
                continue
            title = escape(f"{name}: {size(one.parts[name])}")
            lines.append(
                f"<rect x='{x:.1f}' y='{y}' width='{width:.1f}' height='{BAR}' "
                f"{_paint(name)}><title>{title}</title></rect>"
            )
            x += width
        lines.append(f"<text x='{x + 5:.1f}' y='{y + 13}'>{size(one.total)}</text>")
        y += ROW
    for number, name in enumerate(drawn):
        x, line = 4 + (number % 4) * 210, y + 14 + (number // 4) * 20
        lines.append(
            f"<rect x='{x}' y='{line - 10}' width='12' height='12' "
            f"{_paint(name)}/>"
            f"<text x='{x + 17}' y='{line}'>{escape(name)}</text>"
        )
    return "".join([*lines, "</svg>"])


def _paint(name: str) -> str:
    """Fill and outline of a part."""
    pale = " fill-opacity='.45'" if name in PALE else ""
    colour = COLOURS.get(name, OTHER)
    return f"fill='{colour}'{pale} stroke='currentColor' stroke-width='.5'"
