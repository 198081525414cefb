"""Text of tokens as people can read it: nothing invisible, nothing that is taken for markup."""

from __future__ import annotations

import unicodedata
from html import escape

SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
"""Characters that have a sign of their own."""
DOTTED_CIRCLE = "◌"


def visible(text: str, most: int | None = None) -> str:
    r"""Return a token's text with a sign for every character that would not be seen.

    Spaces become ␣ and line ends ↵; what else has no ink (control characters, marks of direction,
    zero-width joiners) becomes its escape, such as `\u200b`. An accent that would fall on the
    character before it stands on a dotted circle.

    Args:
        text: Of a token, or of several.
        most: Characters kept, an ellipsis included; None keeps all.
    """
    shown = "".join(map(_visible, text)) or "∅"
    if unicodedata.category(shown[0]).startswith("M"):
        shown = DOTTED_CIRCLE + shown
    if most is not None and len(shown) > most:
        shown = f"{shown[: most - 1]}…"
    return shown


def _visible(character: str) -> str:
    if character in SHOWN:
        return SHOWN[character]
    if unicodedata.category(character)[0] in "CZ":
        return character.encode("unicode_escape").decode()
    return character


def span(text: str, style: str, tooltip: str) -> str:
    """A token as HTML, a line end followed by a break."""
    shown = escape(visible(text))
    title = f' title="{escape(tooltip)}"' if tooltip else ""
    return f'<span style="{style}"{title}>{shown}</span>' + "<br>" * text.count("\n")


def probability(value: float) -> str:
    """A probability in three digits, without claiming that a small one is zero."""
    if 0 < value < 0.0005:
        return "<.001"
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A push with its sign, in as many digits as its bar can show."""
    if abs(value) < 0.0005:
        return "0"
    return f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.3f}"
