"""The alignment lens as an SVG text: two strips of tokens, with bridges between common spans.

Like the other figures it has no background of its own, so that it suits light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

from kdflow_lab.widgets._alignment_data import (
    KINDS,
    MANY,
    ONE,
    SPLIT,
    UNALIGNED,
    Piece,
    Token,
    counts,
    headline,
    lines,
    pieces,
)
from kdflow_lab.widgets._panels import INK, STUDENT, TEACHER

if TYPE_CHECKING:
    from kdflow_lab.align.alignment import Alignment

WIDTH, LEFT = 960, 62
LETTER = 7.3
"""Pixels of a letter, and of the room around each token, at 12 pixels monospaced."""
BOX, BRIDGE, LINE = 20, 16, 70
"""Pixels of a token's height, between the strips, and from line to line."""
MOST_LINES = 16
FILL = {ONE: ("#808080", 0.22), SPLIT: ("#CC79A7", 0.45), MANY: ("#CC79A7", 0.8)}
TOP = 56


def draw(alignment: Alignment) -> str:
    """Draw an alignment as an SVG document that scales to the width of the page."""
    found = list(pieces(alignment))
    most = int((WIDTH - LEFT) / LETTER) - 2
    drawn = list(islice(lines(found, most), MOST_LINES + 1))
    body: list[str] = []
    for number, line in enumerate(drawn[:MOST_LINES]):
        body += _line(line, TOP + number * LINE)
    height = TOP + len(drawn[:MOST_LINES]) * LINE
    if len(drawn) > MOST_LINES:
        more = len(found) - sum(map(len, drawn[:MOST_LINES]))
        body.append(f'<text x="4" y="{height + 4}">… and {more:,} more spans</text>')
        height += 20
    numbers = " · ".join(f"{count:,} {KINDS[kind]}" for kind, count in counts(found).items())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" role="img" font-family="monospace" font-size="12" fill="{INK}">',
            f"<title>{escape(f'{headline(alignment)}; spans: {numbers}')}</title>",
            '<defs><pattern id="kdflow-unaligned" width="6" height="6" '
            'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="3" height="6" fill="#D55E00" fill-opacity=".55"/></pattern></defs>',
            f'<text x="4" y="18" font-family="sans-serif" font-weight="bold">'
            f"{escape(headline(alignment))}</text>",
            f'<text x="4" y="36" font-family="sans-serif" font-size="11">'
            f"spans: {escape(numbers)} (hatched)</text>",
            *body,
            "</svg>",
        ]
    )


def _line(line: Sequence[Piece], y: float) -> list[str]:
    """Both strips of one line of text."""
    below = y + BOX + BRIDGE
    parts = [
        f'<text x="4" y="{y + 14}" font-size="11" font-family="sans-serif">teacher</text>',
        f'<text x="4" y="{below + 14}" font-size="11" font-family="sans-serif">student</text>',
    ]
    x = float(LEFT)
    for piece in line:
        width = piece.width * LETTER + 2
        if piece.kind == UNALIGNED:
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="{2 * BOX + BRIDGE}" '
                f'fill="url(#kdflow-unaligned)"><title>{escape(piece.reason)}</title></rect>'
            )
        else:
            parts.append(_bridge(piece, x, width, y))
        parts += _side(piece.teacher, x, width, y, TEACHER)
        parts += _side(piece.student, x, width, below, STUDENT)
        x += width
    return parts


def _bridge(piece: Piece, x: float, width: float, y: float) -> str:
    """The band between the tokens of both sides that write the same bytes."""
    colour, opacity = FILL[piece.kind]
    label = (
        ""
        if piece.kind == ONE
        else f'<text x="{x + (width - 2) / 2:.1f}" y="{y + BOX + 12}" text-anchor="middle" '
        f'font-size="9" font-family="sans-serif">{piece.ratio}</text>'
    )
    return (
        f'<rect x="{x:.1f}" y="{y + BOX}" width="{width - 2:.1f}" height="{BRIDGE}" '
        f'fill="{colour}" fill-opacity="{opacity}"/>{label}'
    )


def _side(tokens: Sequence[Token], x: float, width: float, y: float, colour: str) -> list[str]:
    """The tokens of one side of a piece, spread over its width."""
    if not tokens:
        return []
    letters = sum(len(token.shown) + 1 for token in tokens)
    scale = (width - 2) / letters
    boxes, texts = [], []
    for token in tokens:
        wide = (len(token.shown) + 1) * scale
        style = ' font-style="italic"' if token.silent else ""
        boxes.append(
            f'<rect x="{x + 0.5:.1f}" y="{y + 0.5}" width="{wide - 1:.1f}" height="{BOX - 1}"/>'
        )
        texts.append(
            f'<text x="{x + wide / 2:.1f}" y="{y + 14}"{style}>{escape(token.shown)}</text>'
        )
        x += wide
    return [
        f'<g fill="{colour}" fill-opacity=".1" stroke="{colour}">{"".join(boxes)}</g>',
        f'<g text-anchor="middle">{"".join(texts)}</g>',
    ]
