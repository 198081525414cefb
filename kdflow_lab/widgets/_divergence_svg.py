"""The divergence lens as an SVG document: texts, legend, and the worst tokens."""

from __future__ import annotations

import unicodedata
from html import escape

import numpy as np

from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection
from kdflow_lab.widgets._divergence_data import flowing, lines
from kdflow_lab.widgets._divergence_html import MOST_PROMPT, MUTED, headline, number, worst_cells
from kdflow_lab.widgets._divergence_scale import LIGHT, Scale, colour, ink

WIDTH = 960
LEFT, TOP = 16, 96
CHARACTER, LINE = 7.6, 24
"""Pixels of a character of 12.5 px in a monospaced face (about), and from line to line."""
MOST_LINES = 30
TOKEN_CHARACTERS = 32
WORST = 6


def draw(inspection: Inspection, quantity: str, scale: Scale) -> str:
    """Draw an SVG document on a light card that scales to the width of the page."""
    body, y = _texts(inspection, quantity, scale)
    table, height = _worst(inspection, quantity, scale, y + 34)
    title = escape(headline(inspection, quantity))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" role="img" font-family="sans-serif" font-size="12" fill="#111">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{height}" rx="4" fill="#fff" stroke="#d0d0d0"/>',
            f'<text x="{LEFT}" y="26" font-size="14" font-weight="bold">{title}</text>',
            *_legend(quantity, scale),
            *body,
            *table,
            "</svg>",
        ]
    )


def _legend(quantity: str, scale: Scale) -> list[str]:
    places = np.linspace(-1 if scale.kind == "signed" else 0, 1, len(LIGHT))
    if scale.kind == "agreement":
        places = np.array([0.0, 1.0])
    unit = QUANTITIES[quantity].unit
    parts, x = [], LEFT
    for place in places.tolist():
        ground = colour(place, scale.kind)
        shown = number(scale.value(place), quantity, scale).split(" ")[0]
        parts.append(
            f'<rect x="{x}" y="38" width="56" height="18" fill="{ground}" stroke="#d0d0d0"/>'
            f'<text x="{x + 28}" y="51" text-anchor="middle" font-size="11" '
            f'fill="{ink(ground)}">{escape(shown)}</text>'
        )
        x += 56
    note = "underlined: prompt or masked, not trained"
    parts.append(f'<text x="{x + 10}" y="51">{escape(unit)}</text>')
    parts.append(f'<text x="{LEFT}" y="74" fill="{MUTED}" font-size="11">{note}</text>')
    return parts


def _texts(inspection: Inspection, quantity: str, scale: Scale) -> tuple[list[str], int]:
    """Return the elements, and where the last line stands."""
    arrays = inspection.arrays
    places = scale.places(inspection.values(quantity))
    parts: list[str] = []
    x, y, shown = float(LEFT), TOP, 0
    for _, start, end in lines(inspection):
        trained = np.flatnonzero(arrays["response"][start:end])
        first = start + max(0, int(trained[0]) - MOST_PROMPT) if len(trained) else start
        for index in range(first, end):
            if (y - TOP) // LINE >= MOST_LINES:
                break
            text = inspection.text(int(arrays["labels"][index]))
            label = flowing(text, TOKEN_CHARACTERS)
            wide = CHARACTER * sum(map(_cells, label))
            if x + wide > WIDTH - LEFT:
                x, y = float(LEFT), y + LINE
            parts += _token(label, x, y, wide, places[index], arrays["response"][index], scale)
            shown += 1
            x += wide
            if "\n" in text:
                x, y = float(LEFT), y + LINE
        if x > LEFT:
            x, y = float(LEFT), y + LINE
        y += 8
    left = len(places) - shown
    if left:
        parts.append(
            f'<text x="{LEFT}" y="{y + 4}" fill="{MUTED}">… {left:,} tokens not drawn</text>'
        )
    return parts, y


def _token(
    label: str, x: float, y: int, wide: float, place: float, trained: bool, scale: Scale
) -> list[str]:
    ground = "" if np.isnan(place) else colour(float(place), scale.kind)
    fill, parts = "#111", []
    if trained and ground:
        fill = ink(ground)
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 14}" width="{wide:.1f}" height="19" fill="{ground}"/>'
        )
    elif not trained:
        fill = MUTED
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="3" '
            f'fill="{ground or "#d0d0d0"}"/>'
            f'<path d="M{x:.1f} {y + 2}h{wide:.1f}" stroke="#808080" stroke-dasharray="1 2"/>'
        )
    if label.strip():
        parts.append(
            f'<text x="{x:.1f}" y="{y}" font-family="monospace" font-size="12.5" '
            f'xml:space="preserve" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" '
            f'fill="{fill}">{escape(label)}</text>'
        )
    return parts


def _cells(character: str) -> int:
    """Columns that a character takes in a monospaced face."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _worst(inspection: Inspection, quantity: str, scale: Scale, y: int) -> tuple[list[str], int]:
    headings, rows = worst_cells(inspection, quantity, scale, WORST)
    if not rows:
        return [], y
    parts = [f'<text x="{LEFT}" y="{y}" font-weight="bold">Worst tokens</text>']
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(sum(map(_cells, cell)) for cell in column) * 7.0 + 14 for column in columns]
    for line, row in enumerate([headings, *rows]):
        y += 18
        x = float(LEFT)
        for cell, wide in zip(row, widths, strict=True):
            weight = f' fill="{MUTED}"' if line == 0 else ""
            parts.append(f'<text x="{x:.0f}" y="{y}"{weight}>{escape(cell)}</text>')
            x += wide
    return parts, y + 16
