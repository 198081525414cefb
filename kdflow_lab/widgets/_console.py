r"""How a terminal shows an inspection: the texts in colours, their numbers beside.

Colours are SGR sequences of ECMA-48 (8.3.117), in 24 bits or from the table of 256. No character of
a token that would move the cursor or change a colour reaches the terminal: `visible` shows it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import numpy as np

from kdflow_lab.errors import unknown_name
from kdflow_lab.evaluate.inspection import QUANTITIES
from kdflow_lab.widgets._divergence_data import KINDS, PREFERRED
from kdflow_lab.widgets._divergence_scale import Scale, colour, fit, ink
from kdflow_lab.widgets._tokens import probability, visible

if TYPE_CHECKING:
    from kdflow_lab.evaluate.inspection import Inspection

LEVELS = 9
"""Colours of a scale; the lowest is that of the terminal."""
MOST_TOKENS = 2000
"""Tokens that are printed."""
MOST_CHARACTERS = 40
"""Of one token."""
WORST = 10
LISTED = 3
"""Tokens of either model's list in the table."""
RESET = "\x1b[0m"
DIM = "\x1b[2m"
CUBE = (0, 95, 135, 175, 215, 255)
"""Channels of the 6 x 6 x 6 colours that begin at 16 in the table of 256 (xterm)."""


@dataclass(frozen=True, slots=True)
class Palette:
    """How colours are written, if at all."""

    depth: int = 0
    """24 bits, 8 bits, or 0 for none."""

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Palette:
        """Choose for a stream: nothing but text where it is no terminal, or `NO_COLOR` is set."""
        if not stream.isatty() or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
            return cls()
        deep = environment.get("COLORTERM") in ("truecolor", "24bit")
        return cls(24 if deep else 8)

    def paint(self, text: str, ground: str) -> str:
        """Return a text on a ground `#rrggbb`, in the ink that reads best there."""
        if not self.depth or not ground:
            return text
        return f"\x1b[{self._code(38, ink(ground))};{self._code(48, ground)}m{text}{RESET}"

    def dim(self, text: str) -> str:
        """Return a text that steps back."""
        return f"{DIM}{text}{RESET}" if self.depth else text

    def _code(self, which: int, colour: str) -> str:
        channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        if self.depth == 24:
            return f"{which};2;{channels[0]};{channels[1]};{channels[2]}"
        near = [min(range(6), key=lambda at: abs(CUBE[at] - one)) for one in channels]
        return f"{which};5;{16 + 36 * near[0] + 6 * near[1] + near[2]}"


@dataclass(frozen=True, slots=True)
class Printed:
    """An inspection whose text has colours where `print` writes to a terminal.

    Attributes:
        inspection: What is shown.
        quantity: That tokens are coloured by; None takes the first of `PREFERRED` that is known.
    """

    inspection: Inspection
    quantity: str | None = None

    def __str__(self) -> str:
        """The text, in colours if standard output is a terminal."""
        return text(self.inspection, self.quantity, palette=Palette.of(sys.stdout))


def text(
    inspection: Inspection,
    quantity: str | None = None,
    *,
    palette: Palette = Palette(),
    most: int = MOST_TOKENS,
) -> str:
    """Write the texts, a legend, and a table of the worst tokens.

    Without colours the tokens of that table stand in brackets with their values. What belongs to a
    prompt is dim, or without brackets.

    Args:
        inspection: What is shown.
        quantity: A name in its `quantities`; None takes the first of `PREFERRED` that is known.
        palette: How colours are written.
        most: Tokens that are printed.

    Raises:
        ConfigError: There is no such quantity here.
    """
    if quantity is None:
        quantity = next(one for one in (*PREFERRED, *QUANTITIES) if one in inspection.quantities)
    if quantity not in inspection.quantities:
        raise unknown_name("quantity", quantity, inspection.quantities)
    scale = fit(_kind(quantity), inspection.values(quantity))
    worst = inspection.worst_places(quantity, WORST)
    lines = [
        _headline(inspection, quantity),
        *([inspection.note] if inspection.note else []),
        _legend(quantity, scale, palette),
        "",
        *_texts(inspection, quantity, scale, palette, most, set(worst.tolist())),
        *_table(inspection, quantity, worst),
    ]
    return "\n".join(lines)


def _kind(quantity: str) -> str:
    return KINDS.get(quantity, "signed" if QUANTITIES[quantity].signed else "linear")


def _headline(inspection: Inspection, quantity: str) -> str:
    step = "" if inspection.step is None else f" at step {inspection.step}"
    count = len(inspection.rows)
    kind = QUANTITIES[quantity]
    values = inspection.values(quantity)[inspection.arrays["response"]]
    known = values[np.isfinite(values)]
    mean = f", mean of the answers {_number(float(known.mean()))}" if len(known) else ""
    unit = f" [{kind.unit}]" if kind.unit else ""
    return (
        f"{visible_name(inspection.name)}{step}: {kind.label}{unit} of {len(inspection):,} tokens "
        f"in {count} text{'s' * (count != 1)}{mean}"
    )


def visible_name(name: str) -> str:
    """A model's or a run's name with nothing in it that a terminal would obey."""
    return " ".join(visible(word) for word in name.split(" ")) if name else "?"


def _legend(quantity: str, scale: Scale, palette: Palette) -> str:
    """The colours with the values where they begin; without colours, the range."""
    unit = f" {QUANTITIES[quantity].unit}".rstrip()
    if scale.kind == "agreement":
        shown = palette.paint(" no ", colour(1.0))
        return f"yes: no colour, {shown}" if palette.depth else "yes: 1, no: 0"
    low = -1.0 if scale.kind == "signed" else 0.0
    steps = np.linspace(low, 1.0, LEVELS)
    if not palette.depth:
        ends = f"{_number(scale.value(low))} to {_number(scale.value(1.0))}{unit}"
        return f"scale {ends}; [in brackets: the values of the worst]"
    swatches = [
        palette.paint(f" {_number(scale.value(float(place)))} ", _ground(float(place), scale))
        for place in steps
    ]
    prompts = palette.dim("prompts dim")
    return f"{''.join(swatches)}{unit}, {prompts}"


def _texts(
    inspection: Inspection,
    quantity: str,
    scale: Scale,
    palette: Palette,
    most: int,
    worst: set[int],
) -> list[str]:
    """The texts, each below its number."""
    values = inspection.values(quantity)
    shares = scale.places(values)
    response = inspection.arrays["response"]
    lines, left = [], most
    for row in inspection.rows:
        if left <= 0:
            break
        lines.append(palette.dim(f"-- row {row.row} --"))
        pieces = [palette.dim(_shown(inspection.text(row.ids[0])))]  # nothing predicts it
        places = range(row.places.start, min(row.places.stop, row.places.start + left))
        for place, token_id in zip(places, row.ids[1:].tolist(), strict=False):
            token = inspection.text(token_id)
            pieces.append(
                _token(
                    _shown(token),
                    palette,
                    ground=_ground(float(shares[place]), scale) if response[place] else "",
                    faint=not response[place],
                    value=_number(float(values[place])) if place in worst else "",
                )
                + "\n" * token.count("\n")
            )
        left -= len(row.ids)
        lines += ["".join(pieces).rstrip("\n"), ""]
    hidden = len(inspection) + len(inspection.rows) - most
    return [*lines, f"… {hidden:,} more tokens", ""] if hidden > 0 else lines


def _token(shown: str, palette: Palette, *, ground: str, faint: bool, value: str) -> str:
    if not palette.depth:
        return f"[{shown} {value}]" if value else shown
    if faint:
        return palette.dim(shown)
    return palette.paint(shown, ground)


def _shown(token: str) -> str:
    """A token as it stands in its text: a space stays one, the rest that is unseen shows."""
    cut = token[: MOST_CHARACTERS + 1]
    shown = " ".join(visible(part) if part else "" for part in cut.split(" ")) or "∅"
    return f"{shown[: MOST_CHARACTERS - 1]}…" if len(shown) > MOST_CHARACTERS else shown


def _ground(place: float, scale: Scale) -> str:
    """The colour at a place of the scale; none near 0, and none for what is not known."""
    if np.isnan(place) or abs(place) < 0.5 / (LEVELS - 1):
        return ""
    return colour(round(place * (LEVELS - 1)) / (LEVELS - 1), scale.kind)


def _table(inspection: Inspection, quantity: str, worst: np.ndarray) -> list[str]:
    """The worst tokens, with what both models expected most."""
    arrays = inspection.arrays
    if not len(worst):
        return [f"No token stands out by {QUANTITIES[quantity].label}."]
    values, starts = inspection.values(quantity), arrays["cu_seqlens"]
    models = [one for one in ("student", "teacher") if f"{one}_topk_ids" in arrays]
    p = [f"{one} p" for one in models]
    lines = [("row", "no.", quantity, "token", *p, *(f"{one} expected" for one in models))]
    for place in worst.tolist():
        row = int(np.searchsorted(starts, place, side="right")) - 1
        token = visible(inspection.text(int(arrays["labels"][place])), MOST_CHARACTERS)
        real = [probability(float(np.exp(arrays[f"{one}_logprob"][place]))) for one in models]
        expected = [_expected(inspection, one, place) for one in models]
        lines.append(
            (
                str(arrays["row_index"][row]),
                str(place - int(starts[row]) + 1),
                _number(float(values[place])),
                token,
                *real,
                *expected,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _expected(inspection: Inspection, model: str, place: int) -> str:
    """A model's likeliest tokens with their probabilities."""
    arrays = inspection.arrays
    ids = arrays[f"{model}_topk_ids"][place][:LISTED]
    chances = np.exp(arrays[f"{model}_topk_logprobs"][place][:LISTED])
    return ", ".join(
        f"{visible(inspection.text(token_id), 12)} {_percent(float(chance))}"
        for token_id, chance in zip(ids.tolist(), chances, strict=True)
    )


def _percent(chance: float) -> str:
    return "<1%" if 0 < chance < 0.005 else f"{chance:.0%}"


def _number(value: float) -> str:
    """A value in three significant digits, or a whole number."""
    if value == 0:
        return "0"
    if 1e3 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or not np.isfinite(value) else f"{value:.0e}"
