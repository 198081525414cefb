"""The loss sandbox as HTML and as text: shaded texts, tokens by losses, candidates by losses."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from kdflow_lab.widgets._table import Cell, Table
from kdflow_lab.widgets._tokens import probability, signed, span, visible

if TYPE_CHECKING:
    from kdflow_lab.evaluate.sandbox_report import Sandbox
    from kdflow_lab.evaluate.sandbox_tokens import Candidates, TokenLook

MOST_LINES = 40
"""Tokens in a table."""
MOST_SHADED = 1500
"""Tokens of the shaded texts, all rows together."""
MOST_PROMPT = 60
"""Tokens shown before the first one that was looked at."""
MOST_CANDIDATES = 10
"""Candidates of one token; the others are added up."""
FAINTEST = 0.005
"""A candidate has a line if a probability, or a push as a share of the largest, reaches this."""
SHADE = "213,94,0"
"""Okabe and Ito's vermilion, of which light and dark pages both leave the text readable."""
DARKEST = 0.6
MONO = "font-family:monospace"


# -- HTML -----------------------------------------------------------------------------------------


def html(sandbox: Sandbox, token: int, loss: str) -> str:
    """Draw the texts, shaded by a loss, above the table; colours of the text are the page's."""
    warning = f"<p><b>{escape(sandbox.warning)}</b></p>" if sandbox.warning else ""
    return (
        f'<div style="overflow-x:auto"><p><b>{escape(headline(sandbox))}</b></p>{warning}'
        f"{_shaded(sandbox, token, loss)}{_table(sandbox, token)}</div>"
    )


def headline(sandbox: Sandbox) -> str:
    """Whose losses these are, and of how much."""
    rows = len({look.row for look in sandbox.looks})
    at = f", temperature {sandbox.temperature:g}" if sandbox.temperature != 1.0 else ""
    return (
        f"{sandbox.name}: {_count(len(sandbox.losses), 'loss', 'losses')} on "
        f"{_count(len(sandbox.looks), 'token')} of {_count(rows, 'text')}{at}"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _shaded(sandbox: Sandbox, token: int, loss: str) -> str:
    """The texts; the darker a token, the larger its loss."""
    places = {(look.row, look.position): place for place, look in enumerate(sandbox.looks)}
    highest = _highest([look.values[loss] for look in sandbox.looks])
    parts, left = [], MOST_SHADED
    for row, texts in sandbox.rows.items():
        looked = [position for (one, position) in places if one == row]
        if not looked or left <= 0:
            continue
        start = max(0, min(looked) - MOST_PROMPT)
        spans = ["…"] if start else []
        for position in range(start, min(len(texts), start + left)):
            place = places.get((row, position))
            if place is None:
                spans.append(span(texts[position], "opacity:.6", ""))
                continue
            value = sandbox.looks[place].values[loss]
            style = f"background-color:rgba({SHADE},{_alpha(value, highest):.2f})"
            if place == token:
                style += ";border:1px solid"
            spans.append(span(texts[position], style, f"{place}: {loss} {_value(value)}"))
        left -= len(spans)
        parts.append(f'<p style="{MONO};line-height:1.7;margin:6px 0">{"".join(spans)}</p>')
    cut = "<p>… and more text than is shown.</p>" if left <= 0 else ""
    legend = f"shaded by {loss}, from 0 to {_value(highest)} nats; framed: the token drawn below"
    return f'{"".join(parts)}{cut}<p style="font-size:12px">{escape(legend)}</p>'


def _table(sandbox: Sandbox, token: int) -> str:
    """Tokens by losses, the largest values of every loss shaded."""
    highest = {
        loss: _highest([look.values[loss] for look in sandbox.looks]) for loss in sandbox.losses
    }
    head = "".join(
        _cell("th", text, left=place == 1) for place, text in enumerate(_headings(sandbox))
    )
    lines = []
    for place in shown_places(sandbox, token):
        look = sandbox.looks[place]
        weight = ";font-weight:bold" if place == token else ""
        cells = [
            _cell("td", str(place)),
            _cell("td", _name(sandbox, look), MONO + weight, left=True),
        ]
        for loss in sandbox.losses:
            alpha = _alpha(look.values[loss], highest[loss])
            style = f"background-color:rgba({SHADE},{alpha:.2f}){weight}"
            cells.append(_cell("td", _value(look.values[loss]), style))
        cells += [_cell("td", text) for text in _facts(look)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    rest = f"<p>{escape(_rest(sandbox))}</p>" if _rest(sandbox) else ""
    return (
        '<table style="border-collapse:collapse;font-size:12px;margin:4px 0">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{rest}"
    )


def _cell(tag: str, text: str, style: str = "", *, left: bool = False) -> str:
    align = "left" if left else "right"
    return (
        f'<{tag} style="text-align:{align};padding:2px 7px;white-space:nowrap;{style}">'
        f"{escape(text)}</{tag}>"
    )


def _headings(sandbox: Sandbox) -> list[str]:
    facts = ["student H", "teacher H", "student p", "teacher p", "same top"]
    return ["", "token", *sandbox.losses, *facts]


def _facts(look: TokenLook) -> list[str]:
    """What stands in a line behind the losses."""
    return [
        _value(look.student_entropy),
        _value(look.teacher_entropy),
        probability(look.student_p),
        probability(look.teacher_p),
        "yes" if look.agreement else "no",
    ]


def _name(sandbox: Sandbox, look: TokenLook) -> str:
    return visible(sandbox.texts[look.token_id], 24)


def shown_places(sandbox: Sandbox, token: int) -> range:
    """The tokens of the table: the first ones, or those around the chosen one."""
    count = len(sandbox.looks)
    start = 0 if token < MOST_LINES else min(token - MOST_LINES // 2, count - MOST_LINES)
    return range(start, min(count, start + MOST_LINES))


def _rest(sandbox: Sandbox) -> str:
    more = len(sandbox.looks) - MOST_LINES
    return f"… and {_count(more, 'more token')}: sandbox.frame has them all." if more > 0 else ""


def _highest(values: list[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)


def _alpha(value: float, highest: float) -> float:
    """How dark a value is; infinite ones are as dark as the highest, NaN has no shade."""
    if math.isnan(value) or value <= 0:
        return 0.0
    return DARKEST * min(1.0, value / highest) if highest > 0 else DARKEST


def _value(nats: float) -> str:
    return f"{nats:.3f}" if math.isfinite(nats) else str(nats)


# -- text -----------------------------------------------------------------------------------------


def text(sandbox: Sandbox, token: int) -> str:
    """The table of tokens and losses, and that of the chosen token, aligned."""
    table = Table(
        headline(sandbox),
        tuple(Cell(heading) for heading in _headings(sandbox)),
        [
            (
                Cell(str(place)),
                Cell(_name(sandbox, look)),
                *(Cell(_value(look.values[loss])) for loss in sandbox.losses),
                *(Cell(fact) for fact in _facts(look)),
            )
            for place in shown_places(sandbox, token)
            for look in [sandbox.looks[place]]
        ],
        numbers_from=2,
    )
    parts = [sandbox.warning, table.text(), _rest(sandbox), token_text(sandbox, token)]
    return "\n\n".join(filter(None, parts))


def token_text(sandbox: Sandbox, token: int) -> str:
    """What every loss wants of one token, aligned."""
    look = sandbox.looks[token]
    found = shortened(look.candidates, look.token_id)
    names = [visible(sandbox.texts[token_id], 24) for token_id in found.ids]
    columns = {"student": found.student_p, "teacher": found.teacher_p}
    headings = ["candidate", *columns, *(f"{loss} pushes" for loss in sandbox.losses)]
    rows = [
        (
            Cell(name),
            *(Cell(probability(column[place])) for column in columns.values()),
            *(Cell(_push(found, loss, place)) for loss in sandbox.losses),
        )
        for place, name in enumerate([*names, "all others"] if names else [])
    ]
    title = f"Token {token}, {_name(sandbox, look)}, behind {before(sandbox, look, 40)}"
    if not rows:
        return f"{title}: {'; '.join(look.problems)}"
    return Table(title, tuple(map(Cell, headings)), rows, numbers_from=1).text()


def _push(found: Candidates, loss: str, place: int) -> str:
    size = found.pushes[loss][place]
    return signed(size) if math.isfinite(size) else "NaN"


def before(sandbox: Sandbox, look: TokenLook, most: int) -> str:
    """The end of the text before a token, in at most so many characters."""
    texts = sandbox.rows.get(look.row, [])[: look.position]
    shown = "".join(visible(text) for text in texts[-most:])
    return shown if len(shown) <= most else f"…{shown[len(shown) - most + 1 :]}"


def shortened(candidates: Candidates, token_id: int, most: int = MOST_CANDIDATES) -> Candidates:
    """Keep the candidates that can be seen in a drawing, at most so many, and add up the others.

    The token that really comes is always among them.
    """
    scale = largest_push(candidates) or 1.0

    def weight(place: int) -> float:
        sizes = [abs(values[place]) / scale for values in candidates.pushes.values()]
        known = [size for size in sizes if math.isfinite(size)]
        seen = max(candidates.student_p[place], candidates.teacher_p[place], *known, 0.0)
        return math.inf if candidates.ids[place] == token_id else seen

    places = range(len(candidates.ids))
    heaviest = sorted(places, key=weight, reverse=True)[:most]
    kept = sorted(place for place in heaviest if weight(place) >= FAINTEST)

    def columns(values: tuple[float, ...]) -> tuple[float, ...]:
        picked = [values[place] for place in kept]
        return (*picked, sum(values) - sum(picked)) if values else ()

    return type(candidates)(
        ids=tuple(candidates.ids[place] for place in kept),
        student_p=columns(candidates.student_p),
        teacher_p=columns(candidates.teacher_p),
        pushes={loss: columns(values) for loss, values in candidates.pushes.items()},
    )


def largest_push(candidates: Candidates) -> float:
    """The size of the largest push of any loss; 0 if there is none."""
    sizes = [abs(size) for values in candidates.pushes.values() for size in values]
    return max((size for size in sizes if math.isfinite(size)), default=0.0)
