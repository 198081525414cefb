"""The probe texts of several runs as strips: each token over every run's KL to the teacher.

HTML for a saved notebook, on a light card as the divergence lens has it, and plain text. Inline
styles only; what a sanitizer leaves is readable, as every number is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from kdflow_lab.widgets._compare_probes import Probes
from kdflow_lab.widgets._console import visible_name
from kdflow_lab.widgets._divergence_data import lines
from kdflow_lab.widgets._divergence_html import CARD, LINE, MUTED
from kdflow_lab.widgets._divergence_scale import Scale, colour, fit, ink
from kdflow_lab.widgets._table import LINES, TEXT_WIDTH, elided

MOST_CHARACTERS = 60_000
"""Of the HTML of all strips, shared among the texts."""
MOST_TEXTS = 12
MOST_PRINTED = 60
"""Tokens of one text in a terminal."""
MOST_PROMPT = 6
"""Tokens shown before the first trained one of a text."""
LABEL = 24
"""Characters of a run's name beside a strip."""
SWATCHES = 6
DIFFERS = "≠"
MARK = "#D55E00"


def html(found: Probes) -> str:
    """Draw the strips, a legend and the notes."""
    notes = "".join(
        f'<p style="margin:0 0 4px;font-size:12px">{escape(note)}</p>' for note in found.notes
    )
    if not found.seen:
        return f'<p style="margin:0"><b>Probe texts</b></p>{notes}'
    scale = _scale(found)
    rows = list(lines(found.seen[0].inspection))
    strips, left = "", MOST_CHARACTERS
    for number, (row, start, end) in enumerate(rows[:MOST_TEXTS]):
        # what short texts leave over goes to those that follow
        room = left // (min(len(rows), MOST_TEXTS) - number)
        strip = _strip(found, scale, row, start, end, room)
        strips += strip
        left -= min(room, len(strip))
    return (
        f'<div style="{CARD}"><p style="margin:0 0 6px"><b>{escape(_headline(found))}</b></p>'
        f"{notes}{_legend(scale)}{strips}{_more(rows, MOST_TEXTS, tag='p')}</div>"
    )


def text(found: Probes) -> str:
    """Write the strips and the notes for a terminal."""
    notes = [visible_name(note) for note in found.notes]
    if not found.seen:
        return "\n".join(["Probe texts", *notes])
    rows = list(lines(found.seen[0].inspection))
    blocks = [
        "\n".join(
            [
                visible_name(_headline(found)),
                *notes,
                f"KL to the teacher, nats. {DIFFERS}: the students expect different tokens most; "
                "(in brackets): prompt or masked",
            ]
        )
    ]
    blocks += [_printed(found, row, start, end) for row, start, end in rows[:MOST_TEXTS]]
    return "\n\n".join([*blocks, *filter(None, [_more(rows, MOST_TEXTS)])])


def _scale(found: Probes) -> Scale:
    return fit("root", found.kl[:, found.trained])


def _headline(found: Probes) -> str:
    runs = ", ".join(f"{each.run.label} at step {each.inspection.step:,}" for each in found.seen)
    return f"Probe texts, {runs}"


def _more(rows: list[tuple[int, int, int]], shown: int, tag: str = "") -> str:
    if len(rows) <= shown:
        return ""
    said = f"… {len(rows) - shown:,} more texts"
    return f"<{tag}>{said}</{tag}>" if tag else said


def _about(found: Probes, row: int, start: int, end: int) -> str:
    """A text's row, and how far the students are apart in it."""
    trained = np.flatnonzero(found.trained[start:end]) + start
    data_row = int(found.seen[0].inspection.arrays["row_index"][row])
    if not len(trained):
        return f"row {data_row}: no trained token"
    known = [kl[~np.isnan(kl)] for kl in found.kl[:, trained]]  # across tokenizers not of all
    means = [f"{kl.mean():.3f}" if len(kl) else _number(np.nan) for kl in known]
    return (
        f"row {data_row}: mean KL {' / '.join(means)}; other token "
        f"expected most at {int(found.differs[trained].sum()):,} of {len(trained):,}"
    )


def _places(found: Probes, start: int, end: int) -> Iterator[int]:
    """The predicted tokens of a text from shortly before its first trained one."""
    trained = np.flatnonzero(found.trained[start:end])
    first = max(0, int(trained[0]) - MOST_PROMPT) if len(trained) else 0
    yield from range(start + first, end)


def _number(kl: float) -> str:
    if np.isnan(kl):
        return "–"
    return f"{kl:.2f}" if kl < 10 else f"{kl:.0f}"


# -- HTML -----------------------------------------------------------------------------------------


def _legend(scale: Scale) -> str:
    places = np.linspace(0, 1, SWATCHES).tolist()
    swatches = "".join(
        f'<span style="{_look(place)};padding:1px 6px">'
        f"{'≥ ' if place == 1 else ''}{scale.value(place):.2g}</span>"
        for place in places
    )
    return (
        f'<p style="margin:0 0 6px;font-size:12px">KL to the teacher, nats: {swatches} · '
        f'<span style="border:1px solid {MARK}"><b>{DIFFERS}</b> token</span>: the students expect '
        f'different tokens most · <span style="color:{MUTED}">grey: prompt or masked</span></p>'
    )


def _look(place: float) -> str:
    ground = colour(place)
    return f"background-color:{ground};color:{ink(ground)}"


def _strip(found: Probes, scale: Scale, row: int, start: int, end: int, room: int) -> str:
    """One text, in at most about so many characters."""
    names = "".join(
        f'<span style="display:block"><span style="color:{each.run.look.colour}">'
        f"{LINES[each.run.look.dash]}</span> {escape(elided(each.run.label, LABEL))}</span>"
        for each in found.seen
    )
    parts = [
        '<span style="display:inline-block;text-align:left;margin:0 8px 4px 0;border:1px solid '
        f'#ffffff"><span style="display:block">&nbsp;</span>{names}</span>'
    ]
    left, shown = room, end
    for index in _places(found, start, end):
        part = _token(found, scale, index)
        left -= len(part)
        if left < 0:
            shown = index
            break
        parts.append(part)
    if shown < end:
        parts.append(f'<span style="color:{MUTED}">… {end - shown:,} more tokens</span>')
    return (
        f'<p style="margin:6px 0 2px;font-size:12px;color:{MUTED}">'
        f"{escape(_about(found, row, start, end))}</p>"
        '<div style="font-family:monospace;font-size:12px;line-height:1.4">'
        f"{''.join(parts)}</div>"
    )


def _token(found: Probes, scale: Scale, index: int) -> str:
    trained, differs = found.trained[index], found.differs[index]
    cells = []
    for each, kl in zip(found.seen, found.kl[:, index], strict=True):
        look = f"color:{MUTED}"
        if trained and not np.isnan(kl):
            look = _look(float(scale.places(np.array([kl]))[0]))
        tip = f"{elided(each.run.label, LABEL)} expects {each.expects(index)}"
        cells.append(
            f'<span style="display:block;{look};padding:0 3px" title="{escape(tip)}">'
            f"{_number(float(kl))}</span>"
        )
    name = escape(found.name(index))
    if differs:
        name = f"<b>{DIFFERS}</b> {name}"
    edge = MARK if differs else LINE if trained else "#ffffff"
    ink_of_name = "" if trained else f";color:{MUTED}"
    return (
        '<span style="display:inline-block;text-align:center;margin:0 2px 4px 0;'
        f'border:1px solid {edge}{ink_of_name}">'
        f'<span style="display:block;padding:0 3px">{name}</span>{"".join(cells)}</span>'
    )


# -- text -----------------------------------------------------------------------------------------


def _printed(found: Probes, row: int, start: int, end: int) -> str:
    """One text in columns, one a token, in blocks as wide as a page."""
    places = list(_places(found, start, end))
    labels = [visible_name(elided(each.run.label, LABEL)) for each in found.seen]
    indent = max(map(len, labels))
    columns: list[list[str]] = []
    for index in places[:MOST_PRINTED]:
        name = found.name(index) if found.trained[index] else f"({found.name(index)})"
        name = f"{DIFFERS}{name}" if found.differs[index] else name
        cells = [name, *(_number(float(kl)) for kl in found.kl[:, index])]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) for cell in cells])
    blocks: list[list[list[str]]] = []
    taken = 0
    for column in columns:
        wide = len(column[0]) + 1
        if not blocks or taken + wide > TEXT_WIDTH:
            blocks.append([])
            taken = indent
        blocks[-1].append(column)
        taken += wide
    heads = ["", *labels]
    said = [visible_name(_about(found, row, start, end))]
    for number, block in enumerate(blocks):
        said += [""] * bool(number)
        said += [
            " ".join([head.ljust(indent), *(column[line] for column in block)]).rstrip()
            for line, head in enumerate(heads)
        ]
    if len(places) > MOST_PRINTED:
        said.append(f"… {len(places) - MOST_PRINTED:,} more tokens")
    return "\n".join(said)
