"""One answer of the rollout browser as an SVG text, its tokens coloured by divergence."""

from __future__ import annotations

import math
from html import escape

from kdflow_lab.widgets._divergence_scale import colour, ink
from kdflow_lab.widgets._panels import INK
from kdflow_lab.widgets._rollouts_data import Answer
from kdflow_lab.widgets._rollouts_html import nats, scale_of, title, verdict
from kdflow_lab.widgets._tokens import visible

WIDTH, LETTER, LINE, BOX = 960, 7.3, 26, 20
MOST_LINES = 24
TOP = 62
STEPS = 5


def draw(headline: str, answer: Answer | None, threshold: float) -> str:
    """Draw an answer as an SVG document that scales to the width of the page."""
    body: list[str] = []
    height = 40.0
    if answer is not None:
        body, height = _answer(answer, threshold)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
            f'width="{WIDTH}" role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
            f"<title>{escape(headline)}</title>",
            f'<text x="4" y="18" font-weight="bold">{escape(headline)}</text>',
            *body,
            "</svg>",
        ]
    )


def _answer(answer: Answer, threshold: float) -> tuple[list[str], float]:
    scale = scale_of(answer)
    first = answer.first_diverging(threshold)
    body = [
        f'<text x="4" y="40">{escape(title(answer))}</text>',
        '<g font-family="monospace">',
    ]
    x, y, lines = 4.0, float(TOP), 1
    for at, token in enumerate(answer.tokens):
        shown = visible(token, 60)
        wide = len(shown) * LETTER + 2
        if x + wide > WIDTH - 4:
            x, y, lines = 4.0, y + LINE, lines + 1
        if lines > MOST_LINES:
            rest = len(answer.tokens) - at
            body.append(f'<text x="4" y="{y + 14}">… {rest:,} more tokens</text>')
            break
        value = answer.kl[at]
        fill, text = "none", INK
        if not math.isnan(value):
            fill = colour(min(1.0, value / scale.high))
            text = ink(fill)
        frame = ' stroke="#D55E00" stroke-width="2"' if at == first else ""
        body.append(
            f'<rect x="{x:.1f}" y="{y}" width="{wide - 1:.1f}" height="{BOX}" fill="{fill}"{frame}>'
            f"<title>{escape(f'token {at + 1}: KL {nats(value)} nats')}</title></rect>"
            f'<text x="{x + 0.5:.1f}" y="{y + 14}" fill="{text}">{escape(shown)}</text>'
        )
        x += wide
        if "\n" in token:
            x, y, lines = 4.0, y + LINE, lines + 1
    y += LINE + 8
    body += ["</g>", f'<text x="4" y="{y + 6}">{escape(verdict(answer, threshold))}</text>']
    for step in range(STEPS):
        share = step / (STEPS - 1)
        ground = colour(share)
        body.append(
            f'<rect x="{4 + 64 * step}" y="{y + 18}" width="64" height="16" fill="{ground}"/>'
            f'<text x="{36 + 64 * step}" y="{y + 30}" text-anchor="middle" font-size="11" '
            f'fill="{ink(ground)}">{share * scale.high:.2f}</text>'
        )
    body.append(f'<text x="{12 + 64 * STEPS}" y="{y + 30}">KL(teacher ‖ student), nats</text>')
    return body, y + 44
