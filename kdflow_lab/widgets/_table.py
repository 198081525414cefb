"""A table as text, HTML and SVG; some of its cells name a run and carry its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kdflow_lab.widgets._compare_data import Look

TEXT_WIDTH = 120
"""Characters a line of the text form: what is wider goes on below, as pandas does it."""
CELL_WIDTH = 48
"""Characters of a cell in the text and SVG forms; longer ones lose their middle."""
LINES = {"solid": "━━", "dash": "━ ━", "dot": "•••"}
"""A run's line, in HTML: an inline SVG would not survive JupyterLab's sanitizer."""
DASHES = {"solid": "", "dash": ' stroke-dasharray="8 4"', "dot": ' stroke-dasharray="2.5 2"'}
LINE_HEIGHT, CHARACTER, BOLD_CHARACTER, GAP = 21, 6.7, 7.6, 14
"""Pixels of the SVG form: of a line, of a character of 12 px (about), between columns."""
BLOCK_GAP = 12
"""Pixels between two blocks of columns of the SVG form."""
INDENT = 30
"""Pixels of a run's line before its name."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and the look of the run that it names."""

    text: str
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of the same length under a title."""

    title: str
    headings: tuple[Cell, ...]
    rows: list[tuple[Cell, ...]]
    numbers_from: int | None = None
    """The first column whose cells are aligned to the right, as numbers are."""

    def right(self, column: int) -> bool:
        """Whether a column is aligned to the right."""
        return self.numbers_from is not None and column >= self.numbers_from

    # -- text -----------------------------------------------------------------------------------

    def text(self) -> str:
        """Aligned columns, in blocks of at most `TEXT_WIDTH` characters."""
        lines = [[elided(cell.text, CELL_WIDTH) for cell in row] for row in self._all()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        blocks = []
        for columns in _blocks(widths, most=TEXT_WIDTH, gap=2):
            padded = [
                "  ".join(
                    line[c].rjust(widths[c]) if self.right(c) else line[c].ljust(widths[c])
                    for c in columns
                ).rstrip()
                for line in lines
            ]
            blocks.append("\n".join(padded))
        return f"{self.title}\n" + "\n\n".join(blocks)

    def _all(self) -> list[tuple[Cell, ...]]:
        return [self.headings, *self.rows]

    # -- HTML -----------------------------------------------------------------------------------

    def html(self) -> str:
        """A table that takes its colours from the page."""
        head = "".join(self._html_cell("th", column, c) for column, c in enumerate(self.headings))
        body = "".join(
            f"<tr>{''.join(self._html_cell('td', column, c) for column, c in enumerate(row))}</tr>"
            for row in self.rows
        )
        return (
            '<table style="margin:4px 0 14px;border-collapse:collapse;font-size:12px">'
            f'<caption style="text-align:left;font-weight:bold">{escape(self.title)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _html_cell(self, tag: str, column: int, cell: Cell) -> str:
        line = ""
        if cell.look:
            line = f'<span style="color:{cell.look.colour}">{LINES[cell.look.dash]}</span> '
        align = "right" if self.right(column) else "left"
        wrap = "white-space:nowrap" if cell.look or tag == "th" else "overflow-wrap:break-word"
        style = (
            f"text-align:{align};vertical-align:top;padding:2px 12px 2px 0;max-width:18em;{wrap}"
        )
        return f'<{tag} style="{style}">{line}{escape(cell.text)}</{tag}>'

    # -- SVG ------------------------------------------------------------------------------------

    def svg(self, width: int) -> tuple[str, int]:
        """Draw the table with its corner at the origin, in blocks of at most `width` pixels.

        Returns:
            The elements, and their height in pixels.
        """
        room = [self._needed(column) for column in range(len(self.headings))]
        parts = [f'<text y="0" font-size="13" font-weight="bold">{escape(self.title)}</text>']
        y = 0
        for number, columns in enumerate(_blocks(room, most=width)):
            y += BLOCK_GAP * bool(number)
            for row in self._all():
                y += LINE_HEIGHT
                x = 0.0
                for column in columns:
                    heading = row is self.headings
                    parts.append(self._svg_cell(row[column], column, x, y, room, heading=heading))
                    x += room[column]
                parts.append(
                    f'<path d="M0 {y + 6.5}H{x - GAP:.0f}" stroke="#808080" '
                    f'stroke-opacity="{0.6 if row is self.headings else 0.25}"/>'
                )
        return "\n".join(parts), y + LINE_HEIGHT

    def _needed(self, column: int) -> float:
        """Pixels of a column in the SVG form."""
        heading = min(CELL_WIDTH, len(self.headings[column].text))
        texts = [CHARACTER * min(CELL_WIDTH, len(row[column].text)) for row in self.rows]
        looks = [row[column].look for row in self._all()]
        widest = max([BOLD_CHARACTER * heading, *texts])
        return widest + INDENT * any(looks) + GAP

    def _svg_cell(
        self, cell: Cell, column: int, x: float, y: int, room: Sequence[float], *, heading: bool
    ) -> str:
        line, indent = "", 0
        if cell.look:
            indent = INDENT
            line = (
                f'<path d="M{x:.1f} {y - 4}h24" stroke="{cell.look.colour}" stroke-width="2.5"'
                f"{DASHES[cell.look.dash]}/>"
            )
        text = elided(cell.text, CELL_WIDTH)
        tooltip = f"<title>{escape(cell.text)}</title>" if text != cell.text else ""
        at, anchor = x + indent, "start"
        if self.right(column):
            at, anchor = x + room[column] - GAP, "end"
        weight = ' font-weight="bold"' if heading else ""
        return (
            f'{line}<text x="{at:.1f}" y="{y}" text-anchor="{anchor}"{weight}>'
            f"{escape(text)}{tooltip}</text>"
        )


def elided(text: str, most: int) -> str:
    """Leave out the middle of a text of more than `most` characters: paths differ at both ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def _blocks(widths: Sequence[float], *, most: float, gap: float = 0) -> list[list[int]]:
    """Columns that fit side by side; the first column, which names the rows, begins every block."""
    blocks: list[list[int]] = []
    taken = 0.0
    for column in range(1, len(widths)):
        if not blocks or taken + gap + widths[column] > most:
            blocks.append([0])
            taken = widths[0]
        blocks[-1].append(column)
        taken += gap + widths[column]
    return blocks
