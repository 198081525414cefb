"""One token of the loss sandbox as an SVG text: who finds what likely, and what each loss wants.

On the left a mirrored plot, the student's probabilities against the teacher's; beside it, on the
same lines, what every loss would do to the student's logits. Like the other figures it has no
background of its own, so that it suits light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from kdflow_lab.widgets._panels import INK, STUDENT, TEACHER
from kdflow_lab.widgets._sandbox_tables import before, headline, largest_push, shortened
from kdflow_lab.widgets._tokens import probability, signed, visible

if TYPE_CHECKING:
    from kdflow_lab.evaluate.sandbox_report import Sandbox
    from kdflow_lab.evaluate.sandbox_tokens import Candidates

WIDTH = 960
UP, DOWN = "#009E73", "#D55E00"
LINE, BAR = 22, 13
"""Pixels from line to line, and of a bar's height."""
NUMBER = 44
"""Pixels for a number beside a bar."""
SIDE, LABEL = 96, 104
"""Pixels of the longest probability bar, and of the tokens between the two models."""
MIRROR = 2 * (SIDE + NUMBER) + LABEL
SHORT, LONG = 40, 100
"""Pixels of the longest push, to either side: as many as there is room for."""
GAP = 8
NARROWEST = 2 * (SHORT + NUMBER) + GAP
PER_BLOCK = (WIDTH - MIRROR) // NARROWEST, (WIDTH - LABEL) // NARROWEST
"""Losses beside the models, and in each block below."""
HEADING = 62
"""Pixels above the first line of a block."""
LABEL_CHARACTERS = 13


def draw(sandbox: Sandbox, token: int) -> str:
    """Draw what both models expect at a token, and where every loss would push the student.

    Args:
        sandbox: What was found.
        token: The token's place in `sandbox.looks`.

    Returns:
        An SVG document that scales to the width of the page.
    """
    look = sandbox.looks[token]
    found = shortened(look.candidates, look.token_id)
    title = f"Token {token}: {visible(sandbox.texts[look.token_id], 24)}"
    where = f"behind {before(sandbox, look, 84)}"
    body, y = [], 52
    for warning in look.problems:
        body.append(f'<text x="4" y="{y + 8}" font-weight="bold">{escape(warning)}</text>')
        y += 20
    losses = list(sandbox.losses)
    blocks = [losses[: PER_BLOCK[0]]]
    rest = losses[PER_BLOCK[0] :]
    blocks += [rest[at : at + PER_BLOCK[1]] for at in range(0, len(rest), PER_BLOCK[1])]
    names = [*(visible(sandbox.texts[one], LABEL_CHARACTERS) for one in found.ids), "all others"]
    comes = found.ids.index(look.token_id) if look.token_id in found.ids else -1
    first = min(len(losses), PER_BLOCK[0])
    half = min(LONG, (WIDTH - MIRROR) / first / 2 - NUMBER - GAP / 2)
    scale = largest_push(found)
    for number, block in enumerate(blocks if found.ids else []):
        left = MIRROR if number == 0 else LABEL
        panel = 2 * (half + NUMBER) + GAP
        body.append(f'<g transform="translate(0,{y + HEADING})">')
        body += _stripes(len(names), left + panel * len(block))
        if number == 0:
            body += _mirror(found)
        body += _labels(names, comes, SIDE + NUMBER + LABEL / 2 if number == 0 else LABEL / 2)
        for place, loss in enumerate(block):
            x = left + (place + 0.5) * panel + GAP / 2
            body += _pushes(found, loss, look.values[loss], x, half / scale if scale else 0.0)
        body.append("</g>")
        y += HEADING + LINE * len(names) + 10
    legend = (
        "bold: the token that stands there · bars to the right: the logit is pushed up, to the "
        "left: down, all losses on one scale"
    )
    body.append(f'<text x="4" y="{y + 16}" font-size="11">{escape(legend)}</text>')
    described = f"{headline(sandbox)}. {title}, {where}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 28}" '
            f'width="{WIDTH}" role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
            f"<title>{escape(described)}</title>",
            f'<text x="4" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
            f'<text x="4" y="40" font-family="monospace">{escape(where)}</text>',
            *body,
            "</svg>",
        ]
    )


def _stripes(lines: int, width: float) -> list[str]:
    """A faint ground under every other line, so that the eye keeps to it."""
    return [
        f'<rect x="0" y="{number * LINE}" width="{width:.0f}" height="{LINE}" fill="#808080" '
        'fill-opacity=".1"/>'
        for number in range(0, lines, 2)
    ]


def _labels(names: Sequence[str], comes: int, x: float) -> list[str]:
    """The candidates, one a line, the one that really comes in bold."""
    parts = []
    for number, name in enumerate(names):
        face = 'font-style="italic"' if number == len(names) - 1 else 'font-family="monospace"'
        weight = ' font-weight="bold"' if number == comes else ""
        parts.append(
            f'<text x="{x:.1f}" y="{_baseline(number)}" text-anchor="middle" {face}{weight}>'
            f"{escape(name)}</text>"
        )
    return parts


def _mirror(found: Candidates) -> list[str]:
    """The student's probabilities to the left of the tokens, the teacher's to the right."""
    parts = []
    sides = (
        ("student", STUDENT, found.student_p, SIDE + NUMBER, -1, "end"),
        ("teacher", TEACHER, found.teacher_p, SIDE + NUMBER + LABEL, 1, "start"),
    )
    for name, colour, values, x, direction, anchor in sides:
        parts.append(
            f'<text x="{x}" y="-26" text-anchor="{anchor}" font-weight="bold">{name}</text>'
            f'<text x="{x}" y="-10" text-anchor="{anchor}" font-size="11">probability</text>'
        )
        for number, value in enumerate(values):
            long = SIDE * min(1.0, max(0.0, value))
            start = x - long if direction < 0 else x
            parts.append(_bar(start, number, long, colour))
            at = x + direction * (long + 4)
            parts.append(
                f'<text x="{at:.1f}" y="{_baseline(number)}" text-anchor="{anchor}" '
                f'font-size="11">{escape(probability(max(0.0, value)))}</text>'
            )
    return parts


def _pushes(found: Candidates, loss: str, value: float, x: float, scale: float) -> list[str]:
    """One loss: its value, and its pushes, `scale` pixels each 1, to both sides of a line."""
    nats = f"{value:.3f} nats" if math.isfinite(value) else str(value)
    lines = len(found.ids) + 1
    parts = [
        f'<text x="{x:.1f}" y="-42" text-anchor="middle" font-weight="bold">{escape(loss)}</text>'
        f'<text x="{x:.1f}" y="-26" text-anchor="middle">{nats}</text>'
        f'<g font-size="11"><text x="{x - 8:.1f}" y="-10" text-anchor="end">◀ down</text>'
        f'<text x="{x + 8:.1f}" y="-10">up ▶</text></g>'
        f'<path d="M{x:.1f} -4V{lines * LINE}" stroke="{INK}"/>'
    ]
    for number, size in enumerate(found.pushes[loss]):
        if not math.isfinite(size):
            parts.append(f'<text x="{x + 4:.1f}" y="{_baseline(number)}">NaN</text>')
            continue
        long = scale * abs(size)
        up = size > 0
        parts.append(_bar(x if up else x - long, number, long, UP if up else DOWN))
        at, anchor = (x + long + 4, "start") if up else (x - long - 4, "end")
        text = signed(size)
        if text != "0":
            parts.append(
                f'<text x="{at:.1f}" y="{_baseline(number)}" text-anchor="{anchor}" '
                f'font-size="11">{text.replace("-", "−")}</text>'
            )
    return parts


def _bar(x: float, number: int, long: float, colour: str) -> str:
    y = number * LINE + (LINE - BAR) / 2
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{long:.1f}" height="{BAR}" fill="{colour}"/>'


def _baseline(number: int) -> float:
    return number * LINE + LINE / 2 + 4
