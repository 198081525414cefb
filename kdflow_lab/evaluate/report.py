"""Evaluation results: figures with their intervals, by kind and by row, and a table of several."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("exact_match", "kl", "agreement", "perplexity")


def perplexity(cross_entropy: float) -> float:
    """Exp of a mean cross-entropy in nats; infinity where that is beyond a float."""
    return math.inf if cross_entropy > 700 else math.exp(cross_entropy)  # math.exp raises instead


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on held-out rows.

    Attributes:
        name: Of the model.
        frame: One line a row of the data: `row`, `kind`, `tokens` (of the reference answers), `kl`,
            `ce` and `agreement` (summed over those tokens), `correct` (or None), `prompt`,
            `answer`.
    """

    name: str
    frame: pd.DataFrame

    @classmethod
    def merge(cls, parts: Iterable[list[dict[str, Any]]], *, name: str) -> Evaluation:
        """Join the ranks' rows.

        Raises:
            DataError: There was no row to evaluate.
        """
        import pandas as pd

        rows = [row for part in parts for row in part]
        if not rows:
            raise DataError("There was no row to evaluate. Look at the split and the data.")
        return cls(name, pd.DataFrame(rows).sort_values("row", ignore_index=True))

    @property
    def rows(self) -> int:
        """Rows evaluated."""
        return len(self.frame)

    @property
    def exact_match(self) -> float:
        """Share of rows answered right; NaN if nothing was generated."""
        correct = self.frame["correct"].to_numpy(dtype=float)  # None becomes NaN
        judged = correct[~np.isnan(correct)]
        return float(judged.mean()) if len(judged) else math.nan

    @property
    def kl(self) -> float:
        """KL(teacher || model) in nats, mean over the reference answers' tokens."""
        return self._total("kl") / self._total("tokens")

    @property
    def agreement(self) -> float:
        """Share of the reference answers' tokens where both models' top token is the same."""
        return self._total("agreement") / self._total("tokens")

    @property
    def perplexity(self) -> float:
        """Exp of the mean cross-entropy of the reference answers' tokens."""
        return perplexity(self._total("ce") / self._total("tokens"))

    def _total(self, column: str) -> float:
        return float(self.frame[column].to_numpy(dtype=float).sum())

    @property
    def by_kind(self) -> pd.DataFrame:
        """Exact match, KL and agreement of each kind of row."""
        import pandas as pd

        lines = {
            kind: Evaluation(self.name, frame).to_dict()
            for kind, frame in self.frame.groupby("kind")
        }
        return pd.DataFrame.from_dict(lines, orient="index")

    def to_dict(self) -> dict[str, float]:
        """The four figures and the number of rows."""
        return {"rows": self.rows, **{name: getattr(self, name) for name in FIGURES}}

    def __repr__(self) -> str:
        """The figures in one line."""
        figures = "  ".join(f"{name} {_shown(name, getattr(self, name))}" for name in FIGURES)
        return f"{self.name} ({self.rows} rows): {figures}"

    def _repr_html_(self) -> str:
        return EvaluationTable([self])._repr_html_()


class EvaluationTable:
    """Several evaluations under each other, for a notebook or a terminal."""

    def __init__(self, evaluations: Sequence[Evaluation], names: Sequence[str] = ()) -> None:
        """Take evaluations and, if wished, other names for them."""
        self.evaluations = list(evaluations)
        self.names = list(names) or [evaluation.name for evaluation in evaluations]

    def _cells(self) -> list[list[str]]:
        return [
            [name, str(one.rows), *(_shown(figure, getattr(one, figure)) for figure in FIGURES)]
            for name, one in zip(self.names, self.evaluations, strict=True)
        ]

    def __repr__(self) -> str:
        """Aligned columns."""
        table = [list(HEADINGS), *self._cells()]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


HEADINGS = ("model", "rows", "exact match", "KL to teacher (nats)", "top-1 agreement", "perplexity")


def _shown(figure: str, value: float) -> str:
    """A figure as people read it."""
    if math.isnan(value):
        return "-"
    if figure in ("exact_match", "agreement"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if value < 1000 else f"{value:.3g}"
