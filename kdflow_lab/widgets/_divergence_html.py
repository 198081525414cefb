"""The static twin of the divergence lens as HTML: what a saved notebook keeps.

A light card of its own, so that colours mean the same on dark pages. Inline styles only: what a
sanitizer leaves is readable, as every number stands in a tooltip and those that matter in a table.
"""

from __future__ import annotations

from html import escape

import numpy as np

from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection
from kdflow_lab.widgets._divergence_data import flowing, lines, place_of
from kdflow_lab.widgets._divergence_scale import LIGHT, Scale, colour, ink
from kdflow_lab.widgets._tokens import probability, visible

MOST_TOKENS = 900
"""Tokens drawn, all texts together: some 250 bytes each."""
MOST_PROMPT = 60
"""Tokens drawn before the first trained one of a text."""
MOST_WORST = 12
TOKEN_CHARACTERS = 40
MUTED, LINE = "#5f5f5f", "#d0d0d0"
CARD = (
    f"background-color:#ffffff;color:#111111;border:1px solid {LINE};border-radius:4px;"
    "padding:8px 12px;font-family:sans-serif;font-size:13px"
)


def headline(inspection: Inspection, quantity: str) -> str:
    """Whose tokens these are, how many, and what colours them."""
    count = len(inspection.arrays["labels"])
    texts = len(inspection.arrays["cu_seqlens"]) - 1
    step = "" if inspection.step is None else f" at step {inspection.step:,}"
    return (
        f"{inspection.name or 'inspection'}{step}: {QUANTITIES[quantity].label} of {count:,} "
        f"tokens in {texts:,} {'text' if texts == 1 else 'texts'}"
    )


def html(inspection: Inspection, quantity: str, scale: Scale) -> str:
    """Draw texts, legend and the tokens that deserve a look most."""
    return (
        f'<div style="{CARD}"><p style="margin:0 0 6px"><b>'
        f"{escape(headline(inspection, quantity))}</b></p>"
        f"{_note(inspection)}{_legend(quantity, scale)}{_texts(inspection, quantity, scale)}"
        f"{_table(inspection, quantity, scale)}</div>"
    )


def number(value: float, quantity: str, scale: Scale) -> str:
    """Return a value in few digits, with its unit."""
    if np.isnan(value):
        return "not known"
    if scale.kind == "agreement":
        return "yes" if value else "no"
    unit = QUANTITIES[quantity].unit
    if scale.kind == "log":
        return f"{value:,.0f}"
    sign = "+" if scale.kind == "signed" else ""
    return f"{value:{sign}.3f} {unit}".strip()


def _note(inspection: Inspection) -> str:
    return f'<p style="margin:0 0 6px">{escape(inspection.note)}</p>' if inspection.note else ""


def _legend(quantity: str, scale: Scale) -> str:
    """Steps of the ramp, each with the value in its middle."""
    places = np.linspace(-1 if scale.kind == "signed" else 0, 1, len(LIGHT))
    if scale.kind == "agreement":
        places = np.array([0.0, 1.0])
    cells = []
    for place in places.tolist():
        ground = colour(place, scale.kind)
        shown = number(scale.value(place), quantity, scale).split(" ")[0]
        if place == places[-1] and scale.kind != "agreement":
            shown = f"≥ {shown}"
        cells.append(
            f'<span style="background-color:{ground};color:{ink(ground)};padding:1px 6px">'
            f"{escape(shown)}</span>"
        )
    unit = QUANTITIES[quantity].unit
    return (
        f'<p style="margin:0 0 4px;font-size:12px">{escape(QUANTITIES[quantity].label)}'
        f"{f', {unit}' if unit else ''}: {''.join(cells)}</p>"
        f'<p style="margin:0 0 6px;font-size:12px;color:{MUTED}">'
        f'<span style="{_apart("#a0a0a0")}">underlined</span>: prompt or masked, not trained · '
        "grey: the first token, which nothing predicts</p>"
    )


def _apart(ground: str) -> str:
    """The look of a token that is not trained: no fill, its colour as a line below."""
    return f"border-bottom:3px solid {ground};text-decoration:underline dotted;color:{MUTED}"


def _texts(inspection: Inspection, quantity: str, scale: Scale) -> str:
    arrays = inspection.arrays
    values = inspection.values(quantity)
    places = scale.places(values)
    response = arrays["response"]
    many = len(arrays["cu_seqlens"]) > 2
    parts, left = [], MOST_TOKENS
    for row, start, end in lines(inspection):
        if left <= 0:
            rest = len(response) - start
            parts.append(f"<p>… {rest:,} more tokens in the next texts</p>")
            break
        if many:
            name = f"row {arrays['row_index'][row]}"
            parts.append(
                f'<p style="margin:8px 0 0;font-size:12px;color:{MUTED}">{escape(name)}</p>'
            )
        trained = np.flatnonzero(response[start:end])
        first = start + max(0, int(trained[0]) - MOST_PROMPT) if len(trained) else start
        spans = []
        if first == start:
            shown = _flow(inspection, int(arrays["input_ids"][start]))
            spans.append(f'<span style="color:{MUTED}">{shown}</span>')
        else:
            spans.append(f'<span style="color:{MUTED}">… {first - start + 1:,} tokens </span>')
        last = min(end, first + left)
        for index in range(first, last):
            spans.append(_token(inspection, index, float(places[index]), quantity, scale))
        if last < end:
            spans.append(f'<span style="color:{MUTED}"> … {end - last:,} more tokens</span>')
        left -= last - first
        parts.append(
            '<p style="margin:2px 0 6px;font-family:monospace;line-height:1.8;'
            f'white-space:pre-wrap;overflow-wrap:anywhere">{"".join(spans)}</p>'
        )
    return "".join(parts)


def _token(inspection: Inspection, index: int, place: float, quantity: str, scale: Scale) -> str:
    arrays = inspection.arrays
    label = int(arrays["labels"][index])
    tip = f"{number(float(inspection.values(quantity)[index]), quantity, scale)}"
    tip += "".join(f"; {fact}" for fact in _facts(inspection, index))
    ground = "" if np.isnan(place) else colour(place, scale.kind)
    if arrays["response"][index]:
        look = f"background-color:{ground};color:{ink(ground)}" if ground else ""
    else:
        look = _apart(ground or LINE)
    shown = _flow(inspection, label)
    breaks = "<br>" * min(4, inspection.text(label).count("\n"))
    return f'<span style="{look}" title="{escape(tip)}">{shown}</span>{breaks}'


def _facts(inspection: Inspection, index: int) -> list[str]:
    """What both models gave the token that really comes."""
    arrays = inspection.arrays
    facts = []
    for side in ("student", "teacher"):
        if f"{side}_logprob" in arrays:
            p = float(np.exp(arrays[f"{side}_logprob"][index]))
            facts.append(f"{side} {probability(p)}, rank {arrays[f'{side}_rank'][index]:,}")
    return facts


def _flow(inspection: Inspection, token_id: int) -> str:
    return escape(flowing(inspection.text(token_id), TOKEN_CHARACTERS))


def worst_cells(
    inspection: Inspection, quantity: str, scale: Scale, most: int = MOST_WORST
) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table of the worst tokens."""
    arrays = inspection.arrays
    sides = [side for side in ("student", "teacher") if f"{side}_topk_ids" in arrays]
    headings = ["row", "token", "position", QUANTITIES[quantity].label]
    headings += [heading for side in sides for heading in (f"{side} p", f"{side} expects")]
    rows = []
    values = inspection.values(quantity)
    for at in inspection.worst_places(quantity, most).tolist():
        place, value = place_of(inspection, at), float(values[at])
        cells = [
            str(place.row),
            visible(inspection.text(int(arrays["labels"][at]))[:100], 24),
            str(place.position),
            number(value, quantity, scale),
        ]
        for side in sides:
            top = int(arrays[f"{side}_topk_ids"][at, 0])
            p = float(np.exp(arrays[f"{side}_topk_logprobs"][at, 0]))
            cells.append(probability(float(np.exp(arrays[f"{side}_logprob"][at]))))
            name = visible(inspection.text(top)[:100], 20)
            cells.append(f"{name} {probability(p)}")
        rows.append(cells)
    return headings, rows


def _table(inspection: Inspection, quantity: str, scale: Scale) -> str:
    headings, rows = worst_cells(inspection, quantity, scale)
    if not rows:
        return ""
    head = "".join(_cell("th", heading) for heading in headings)
    body = "".join(f"<tr>{''.join(_cell('td', cell) for cell in row)}</tr>" for row in rows)
    return (
        '<p style="margin:8px 0 2px"><b>Worst tokens</b></p>'
        '<table style="border-collapse:collapse;font-size:12px;color:#111111;'
        f'background-color:#ffffff"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _cell(tag: str, shown: str) -> str:
    style = "text-align:left;padding:1px 12px 1px 0;white-space:nowrap;color:#111111"
    return f'<{tag} style="{style};background-color:#ffffff">{escape(shown)}</{tag}>'
