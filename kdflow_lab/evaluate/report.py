"""The evaluation of one model: its figures, by kind and by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdflow_lab import answer_metrics
from kdflow_lab.errors import ConfigError, DataError, MetricError
from kdflow_lab.evaluate.figures import (
    AGREEMENT,
    BITS_PER_BYTE,
    COMPARED,
    EXACT_MATCH,
    KL,
    PERPLEXITY,
    Figure,
    figures,
)

if TYPE_CHECKING:
    import pandas as pd


def perplexity(cross_entropy: float) -> float:
    """Exp of a mean cross-entropy in nats; infinity where that is beyond a float."""
    return math.inf if cross_entropy > 700 else math.exp(cross_entropy)  # math.exp raises instead


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on held-out rows.

    Attributes:
        name: Of the model.
        frame: One line a row of the data: `row`, `kind`, `tokens` (of the reference answers),
            `compared` (those of them that the teacher can be compared on: all, with one tokenizer),
            `bytes` (of the reference answers' text), `kl` and `agreement` (summed over the compared
            tokens), `ce` (over all), `correct` (or None), `prompt`, `answer`, and a column for each
            metric.
        metrics: Names of the metrics that judged the answers besides exact match.
        data: The rows of the data in the same order, where answers were written.
    """

    name: str
    frame: pd.DataFrame
    metrics: tuple[str, ...] = ()
    data: tuple[dict[str, Any], ...] | None = field(default=None, repr=False)

    @classmethod
    def merge(cls, parts: Iterable[list[dict[str, Any]]], *, name: str) -> Evaluation:
        """Join the ranks' rows.

        Args:
            parts: Lines of the frame; the row of data itself is in `data`, if it is there.
            name: Of the model.

        Raises:
            DataError: There was no row to evaluate.
        """
        import pandas as pd

        rows = sorted((row for part in parts for row in part), key=lambda row: row["row"])
        if not rows:
            raise DataError("There was no row to evaluate. Look at the split and the data.")
        known = all("data" in row for row in rows)
        data = tuple(row["data"] for row in rows) if known else None
        lines = [{key: row[key] for key in row if key != "data"} for row in rows]
        return cls(name, pd.DataFrame(lines), data=data)

    def judge(self, metric: Any) -> Evaluation:
        """Judge the answers by further metrics; nothing is asked of any model.

        Args:
            metric: As in `Lab.evaluate`.

        Returns:
            Another evaluation with the metrics' columns; one of the same name is replaced.

        Raises:
            ConfigError: A metric is unknown or cannot take an answer and a row.
            MetricError: It failed on a row, or returned no number; `error.evaluation` holds the
                evaluation with the metrics before it.
        """
        found = answer_metrics.asked_for(metric)
        missing = self.frame["answer"].isna().tolist()  # pandas may keep None as NaN
        if found and (self.data is None or all(missing)):
            raise ConfigError(
                f"{self.name} wrote no answers that {', '.join(found)} could judge. Evaluate rows "
                "with messages or prompts, and generate=True."
            )
        judged = self
        answers = [
            None if gone else str(one)
            for one, gone in zip(self.frame["answer"], missing, strict=True)
        ]
        for name, function in found.items():
            numbers = [int(row) for row in self.frame["row"]]
            try:
                values = answer_metrics.apply(name, function, answers, self.data or (), numbers)
            except MetricError as error:
                error.evaluation = judged
                raise
            names = (*(one for one in judged.metrics if one != name), name)
            frame = judged.frame.assign(**{name: values})
            judged = Evaluation(self.name, frame, names, self.data)
        return judged

    @property
    def rows(self) -> int:
        """Rows evaluated."""
        return len(self.frame)

    @property
    def exact_match(self) -> float:
        """Share of rows answered right; NaN if nothing was generated."""
        return self._value(EXACT_MATCH)

    @property
    def kl(self) -> float:
        """KL(teacher || model) in nats, mean over the reference answers' compared tokens."""
        return self._value(KL)

    @property
    def agreement(self) -> float:
        """Share of the compared tokens where both models' top token is the same."""
        return self._value(AGREEMENT)

    @property
    def perplexity(self) -> float:
        """Exp of the mean cross-entropy of the reference answers' tokens.

        Those of two tokenizers do not compare: see `bits_per_byte`.
        """
        return self._value(PERPLEXITY)

    @property
    def bits_per_byte(self) -> float:
        """Cross-entropy of the reference answers in bits, divided by the bytes of their UTF-8 text.

        It compares models of any tokenizers. What ends an answer costs bits and has no bytes.

        Source: The Pile, arXiv:2101.00027, section 3.1 (equation for BPB).
        """
        return self._value(BITS_PER_BYTE)

    @property
    def compared(self) -> float:
        """Share of the reference answers' tokens that teacher and model are compared on.

        1 with one tokenizer; across tokenizers some tokens have no counterpart.
        """
        return 1.0 if "compared" not in self.frame else self._value(COMPARED)

    @property
    def across(self) -> bool:
        """Whether some tokens could not be compared: teacher and model have two tokenizers."""
        return self.compared < 1.0

    def _value(self, figure: Figure) -> float:
        above, below = figure.terms(self.frame)
        return float(figure.of(above.sum(), below.sum()))

    @property
    def by_kind(self) -> pd.DataFrame:
        """All figures of each kind of row."""
        import pandas as pd

        lines = {
            kind: Evaluation(self.name, frame, self.metrics).to_dict()
            for kind, frame in self.frame.groupby("kind")
        }
        return pd.DataFrame.from_dict(lines, orient="index")

    def to_dict(self) -> dict[str, float]:
        """The figures and the number of rows."""
        return {"rows": self.rows, **{one.name: self._value(one) for one in self.figures}}

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is shown of it."""
        return figures(self.metrics, across=self.across)

    def __repr__(self) -> str:
        """The figures in one line."""
        shown = "  ".join(f"{one.name} {one.text(self._value(one))}" for one in self.figures)
        return f"{self.name} ({self.rows} rows): {shown}"

    def _repr_html_(self) -> str:
        from kdflow_lab.evaluate.table import EvaluationTable

        return EvaluationTable([self])._repr_html_()


def same_rows(evaluations: Sequence[Evaluation]) -> bool:
    """Tell whether all are of the very same rows: numbers, kinds and prompts."""
    columns = ["row", "kind", "prompt"]
    first = evaluations[0].frame[columns]
    return all(first.equals(one.frame[columns]) for one in evaluations[1:])
