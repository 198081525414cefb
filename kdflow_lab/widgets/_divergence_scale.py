"""Colour scales of the divergence lens; `/widgets/scale.js` is the twin of this module.

The stops lie on viridis (S. van der Walt and N. Smith, 2015, public domain), begun at the colour of
the page and resampled at equal distances in OKLab (B. Ottosson, 2020). So equal steps look equal,
with any common colour blindness too, lightness changes in one direction only, and a value of 0 has
no colour. Quantities with a sign go from blue over the page's colour to orange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LIGHT = (
    "#ffffff #faf6b0 #f4ea45 #bade28 #71cf56 #36b878 #1f9c89 #287d8e #365d8d #443a83 #471365"
).split()
"""From 0 to the highest value, on a light page; the static twin brings its own light page."""
BELOW = "#ffffff #bdd7ed #72b2d8 #3a86c0 #18599a #08306b".split()
ABOVE = "#ffffff #fdd2a6 #fd9c53 #e76419 #b83c02 #7f2704".split()
"""From 0 to the lowest and to the highest value of a quantity with a sign."""
NICE = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
QUANTILE = 0.98
"""What is above this share of the values has the colour of the end: a few do not wash out all."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places on a ramp of colours.

    Attributes:
        kind: `linear` from 0; `root` likewise, by square roots, for divergences, most of which are
            small; `log` from 1; `signed` around 0; `agreement`: 1 has no colour, 0 the highest.
        high: The value at the end.
    """

    kind: str
    high: float

    def places(self, values: NDArray[np.floating]) -> Floats:
        """Return where the values lie: 0 to 1, signed ones -1 to 1; NaN stays NaN."""
        known = np.asarray(values, dtype=np.float64)
        if self.kind == "agreement":
            return 1.0 - known
        if self.kind == "log":
            return np.clip(np.log(np.maximum(known, 1.0)) / math.log(self.high), 0.0, 1.0)
        low = -1.0 if self.kind == "signed" else 0.0
        shares = np.clip(known / self.high, low, 1.0)
        return np.sqrt(shares) if self.kind == "root" else shares

    def value(self, place: float) -> float:
        """Return the value at a place, the reverse of `places`."""
        if self.kind == "agreement":
            return 1.0 - place
        if self.kind == "root":
            return self.high * place * place
        return self.high**place if self.kind == "log" else self.high * place


def fit(kind: str, values: NDArray[np.floating]) -> Scale:
    """Choose a round end that all but the largest fiftieth of the values stay below."""
    if kind == "agreement":
        return Scale(kind, 1.0)
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    high = float(np.quantile(finite, QUANTILE)) if len(finite) else 0.0
    return Scale(kind, max(nice(high), 10.0 if kind == "log" else 1e-6))


def nice(value: float) -> float:
    """Round up to a number that a legend can show; 0 for what is not above 0."""
    if not value > 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step for step in NICE if value <= step * power * (1 + 1e-9)) * power


def colour(place: float, kind: str = "linear") -> str:
    """Return the colour at a place of the light page, as `#rrggbb`."""
    if kind == "signed":
        return _between(ABOVE if place >= 0 else BELOW, abs(place))
    return _between(LIGHT, place)


def ink(ground: str) -> str:
    """Return black or white, whichever is read better on a colour: at least 4.5 : 1."""
    linear = [_linear(int(ground[at : at + 2], 16) / 255) for at in (1, 3, 5)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _between(stops: Sequence[str], place: float) -> str:
    at = min(max(place, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(at), len(stops) - 2)
    share = at - index
    channels = []
    for digit in (1, 3, 5):
        low, high = (int(stop[digit : digit + 2], 16) for stop in stops[index : index + 2])
        channels.append(math.floor(low + (high - low) * share + 0.5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _linear(channel: float) -> float:
    """WCAG 2, relative luminance."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
