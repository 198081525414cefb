"""The figures of an evaluation: each is a ratio of two sums over rows, so that rows can be drawn.

A mean over tokens is no mean over rows: a row counts by its tokens. With both sums at hand a figure
and its bootstrap interval are computed alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["share", "plain", "exp", "bits"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: As in Python.
        heading: As people read it.
        sums: Column of the frame that is summed above the line.
        over: Column that is summed below it; None counts the rows that have a value.
        form: `share` is shown in percent, `exp` is exp of the ratio, `bits` the ratio / ln 2.
    """

    name: str
    heading: str
    sums: str
    over: str | None
    form: Form

    def terms(self, frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what is summed above and below the line, Float64[rows] each."""
        nothing = np.full(len(frame), np.nan)
        above = frame[self.sums].to_numpy(dtype=float) if self.sums in frame else nothing
        if self.over is None:  # None became NaN: not judged
            known = ~np.isnan(above)
            return np.where(known, above, 0.0), known.astype(float)
        over = "tokens" if self.over == "compared" and "compared" not in frame else self.over
        return above, frame[over].to_numpy(dtype=float) if over in frame else nothing

    def of(self, above: Any, below: Any) -> NDArray[np.float64]:
        """Return the figure of sums, Float64 of their shape; NaN where nothing was summed."""
        above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(below > 0, above / below, np.nan)
            if self.form == "exp":
                return np.exp(ratio)
            return ratio / math.log(2) if self.form == "bits" else ratio

    def text(self, value: float, *, sign: bool = False) -> str:
        """A value as people read it; with a sign if it is a difference."""
        if math.isnan(value):
            return "-"
        plus = "+" if sign else ""
        if self.form == "share":
            return f"{100 * value:{plus}.1f}" + ("" if sign else " %")
        if abs(value) < 1000:
            return f"{value:{plus}.3f}"
        return f"{value:{plus}.0f}" if abs(value) < 1e6 else f"{value:{plus}.3g}"

    def bare(self, value: float, *, sign: bool = False) -> str:
        """The same without a unit."""
        return self.text(value, sign=sign).removesuffix(" %")


EXACT_MATCH = Figure("exact_match", "exact match", "correct", None, "share")
KL = Figure("kl", "KL to teacher (nats)", "kl", "compared", "plain")
AGREEMENT = Figure("agreement", "top-1 agreement", "agreement", "compared", "share")
PERPLEXITY = Figure("perplexity", "perplexity", "ce", "tokens", "exp")
BITS_PER_BYTE = Figure("bits_per_byte", "bits per byte", "ce", "bytes", "bits")
COMPARED = Figure("compared", "tokens compared", "compared", "tokens", "share")
ALWAYS = (EXACT_MATCH, KL, AGREEMENT, PERPLEXITY)
ACROSS = (BITS_PER_BYTE, COMPARED)
"""Shown besides where tokenizers differ: perplexities of two tokenizers do not compare, and some
tokens have no counterpart."""


def figures(metrics: Sequence[str] = (), *, across: bool = False) -> tuple[Figure, ...]:
    """Return the figures of evaluations with these metrics of answers, in the order shown."""
    own = tuple(Figure(name, name, name, None, "plain") for name in metrics)
    return (EXACT_MATCH, *own, *ALWAYS[1:], *(ACROSS if across else ()))
