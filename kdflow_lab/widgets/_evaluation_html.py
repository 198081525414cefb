"""An evaluation table as HTML: each figure with its interval as numbers and as a bar.

The bars of a column share one scale; the grey line across is the model that the others are compared
with. They are made of plain elements: JupyterLab takes drawings out of a notebook that it does not
trust. Colours are of Okabe and Ito (2008), texts take the page's. Without styles, as on GitHub, the
numbers remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from kdflow_lab.evaluate.figures import PERPLEXITY

if TYPE_CHECKING:
    from kdflow_lab.evaluate.figures import Figure
    from kdflow_lab.evaluate.table import EvaluationTable

BAR_WIDTH, BAR_HEIGHT, MARGIN, DOT = 116, 12, 5, 7
COLOURS = {"plain": "#0072B2", "against": "#999999"}
MUTED = "color:var(--jp-ui-font-color2,inherit);opacity:.85"
CELL = "text-align:left;vertical-align:top;padding:4px 14px 4px 0;white-space:nowrap"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>
<style>:root{{color-scheme:light dark}}body{{font-family:sans-serif;margin:24px}}</style>
</head><body>
{table}
</body></html>
"""


def table_html(table: EvaluationTable) -> str:
    """Draw the table for a notebook."""
    head = "".join(
        f'<th style="{CELL}">{escape(heading)}</th>'
        for heading in ("model", "rows", *(figure.heading for figure in table.figures))
    )
    body = "".join(_row(table, name) for name in table.names)
    return (
        '<div class="kdflow-evaluation" style="overflow-x:auto">'
        '<table style="border-collapse:collapse;font-size:12px">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<p style="margin:4px 0;font-size:12px;{MUTED}">{escape(table.note)}</p></div>'
    )


def page_html(table: EvaluationTable) -> str:
    """Draw the table as a page of its own, for a light and a dark browser."""
    return PAGE.format(table=table_html(table))


def _row(table: EvaluationTable, name: str) -> str:
    cells = "".join(
        f'<td style="{CELL}">{_cell(table, name, figure)}</td>' for figure in table.figures
    )
    return (
        f'<tr><td style="{CELL};font-weight:bold">{escape(name)}</td>'
        f'<td style="{CELL}">{table[name].rows:,}</td>{cells}</tr>'
    )


def _cell(table: EvaluationTable, name: str, figure: Figure) -> str:
    """The value, its interval in numbers and as a bar, and the difference."""
    from kdflow_lab.evaluate.table import with_difference

    line = table.line(name, figure)
    if math.isnan(line["value"]):
        return "-"
    ends = f"[{figure.bare(line['low'])}, {figure.bare(line['high'])}]"
    parts = [
        f"<b>{escape(figure.text(line['value']))}</b> "
        f'<span style="font-size:11px;{MUTED}">{escape(ends)}</span>'
    ]
    lines = [table.line(other, figure) for other in table.names]
    against = table.line(table.against, figure)["value"] if table.paired else math.nan
    is_other = name != table.against or len(table) == 1
    bar = _bar(line, lines, against, COLOURS["plain" if is_other else "against"])
    parts += [bar] if bar else []
    if not math.isnan(line["difference"]):
        text = f"Δ {with_difference(figure, line)}"
        parts.append(f'<span style="font-size:11px">{escape(text)}</span>')
    return "<br/>".join(parts)


def _bar(line: dict[str, Any], lines: Sequence[dict[str, Any]], against: float, colour: str) -> str:
    """The interval and the value on the column's scale; empty where one of them is not finite.

    Perplexities, which may differ by orders of magnitude, are drawn by their logarithms.
    """
    if line["figure"] == PERPLEXITY.name:
        line, *lines = [_logarithms(one) for one in (line, *lines)]
        against = math.log(against) if against > 0 else math.nan
    ends = [one[end] for one in lines for end in ("low", "high") if math.isfinite(one[end])]
    own = (line["low"], line["value"], line["high"])
    if len(lines) == 1 or not ends or not all(map(math.isfinite, own)):
        return ""
    least, most = min(ends), max(ends)
    width = most - least or 1.0

    def at(value: float) -> float:
        return MARGIN + (BAR_WIDTH - 2 * MARGIN) * (min(max(value, least), most) - least) / width

    low, value, high = map(at, own)
    marks = [(0.0, BAR_WIDTH, 1, "#808080", ""), (low, max(1.0, high - low), 4, colour, "")]
    if math.isfinite(against):
        marks.append((at(against), 1, BAR_HEIGHT, "#808080", ""))
    marks.append((value - DOT / 2, DOT, DOT, colour, f";border-radius:{DOT}px"))
    parts, drawn_to = [], 0.0
    for x, wide, high_, fill, more in marks:
        parts.append(
            f'<span style="display:inline-block;margin-left:{x - drawn_to:.1f}px;'
            f"width:{wide:.1f}px;height:{high_}px;background-color:{fill};vertical-align:middle"
            f'{more}"></span>'
        )
        drawn_to = x + wide
    return (
        f'<span aria-hidden="true" style="display:inline-block;width:{BAR_WIDTH}px;'
        f'height:{BAR_HEIGHT}px;line-height:{BAR_HEIGHT}px;white-space:nowrap;font-size:0px">'
        f"{''.join(parts)}</span>"
    )


def _logarithms(line: dict[str, Any]) -> dict[str, Any]:
    ends = {end: line[end] for end in ("low", "value", "high")}
    return {end: math.log(value) if value > 0 else math.nan for end, value in ends.items()}
