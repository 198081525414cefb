"""Several evaluations of the same rows in one table, with intervals and paired differences."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.errors import ConfigError, MetricError, unknown_name
from kdflow_lab.evaluate.bootstrap import resampled_sums
from kdflow_lab.evaluate.figures import Figure, figures
from kdflow_lab.evaluate.report import Evaluation, same_rows

if TYPE_CHECKING:
    import pandas as pd

SAVES = (".csv", ".json", ".html")
BEFORE = "student"
"""What others are compared with where it is there: the model that runs start from."""


class EvaluationTable:
    """Models under each other: every figure with its interval, and its difference to one of them.

    Intervals say how much a figure would move with other held-out rows like these. Differences are
    paired: both models' figures come from the same drawn rows, so what makes a row hard for both
    cancels.
    """

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        names: Sequence[str] = (),
        *,
        against: str | None = None,
        level: float = 0.95,
        samples: int = 2000,
        seed: int = 0,
    ) -> None:
        """Take evaluations; nothing is computed before it is looked at.

        Args:
            evaluations: At least one.
            names: Other names for them.
            against: Which one the others are compared with; by default `student`, or the first.
            level: Of the intervals.
            samples: Bootstrap samples.
            seed: Of the drawing.

        Raises:
            ConfigError: No evaluation, other numbers of names, two of one name, or no such name.
        """
        self.evaluations = list(evaluations)
        self.names = list(names) or [evaluation.name for evaluation in evaluations]
        if not self.evaluations:
            raise ConfigError("A table needs at least one evaluation: lab.evaluate makes them.")
        if len(self.names) != len(self.evaluations):
            raise ConfigError(
                f"There are {len(self.evaluations)} evaluations and {len(self.names)} names: "
                f"{', '.join(self.names)}. Expected a name for each."
            )
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ConfigError(f"Two evaluations are called {twice[0]!r}. Pass other names=[…].")
        if against is not None and against not in self.names:
            raise unknown_name("model", against, self.names)
        self.against = against or (BEFORE if BEFORE in self.names else self.names[0])
        self.level, self.samples, self.seed = level, samples, seed
        self.paired = same_rows(self.evaluations)
        """Whether all are of the same rows; only then there are differences."""

    def __getitem__(self, name: str) -> Evaluation:
        """The evaluation of a model.

        Raises:
            ConfigError: There is none; the nearest name is offered.
        """
        if name not in self.names:
            raise unknown_name("model", name, self.names)
        return self.evaluations[self.names.index(name)]

    def __len__(self) -> int:
        """Number of models."""
        return len(self.evaluations)

    def judge(self, metric: Any) -> EvaluationTable:
        """Judge the answers by further metrics; see `Evaluation.judge`.

        Raises:
            ConfigError: As there.
            MetricError: Likewise; `error.evaluation` is this table.
        """
        try:
            judged = [one.judge(metric) for one in self.evaluations]
        except MetricError as error:
            error.evaluation = self
            raise
        return EvaluationTable(
            judged,
            self.names,
            against=self.against,
            level=self.level,
            samples=self.samples,
            seed=self.seed,
        )

    @functools.cached_property
    def figures(self) -> tuple[Figure, ...]:
        """What is shown: bits per byte and the share of compared tokens where tokenizers differ."""
        metrics = dict.fromkeys(name for one in self.evaluations for name in one.metrics)
        tokens = [one.frame["tokens"].tolist() for one in self.evaluations]
        several = self.paired and any(one != tokens[0] for one in tokens[1:])
        across = several or any(one.across for one in self.evaluations)
        return figures(tuple(metrics), across=across)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One line a model and figure.

        Columns: `model`, `figure`, `rows`, `value`, `low`, `high`, `against`, `difference`,
        `difference_low`, `difference_high`; NaN where there is nothing to say.
        """
        import pandas as pd

        return pd.DataFrame(
            [self._line(name, figure) for name in self.names for figure in self.figures]
        )

    @functools.cached_property
    def _sums(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Of each evaluation: sums of all rows, Float64[2F], and of drawn ones, Float64[S, 2F].

        Above and below the line of each figure. The same rows are drawn for evaluations of equally
        many rows, which pairs them.
        """
        found = []
        for one in self.evaluations:
            terms = [term for figure in self.figures for term in figure.terms(one.frame)]
            columns = np.stack(terms, axis=1)
            drawn = resampled_sums(columns, samples=self.samples, seed=self.seed)
            found.append((columns.sum(axis=0), drawn))
        return found

    def _values(self, name: str, figure: Figure) -> tuple[float, NDArray[np.float64]]:
        """The figure of a model, and of each drawn sample, Float64[S]."""
        at = 2 * self.figures.index(figure)
        whole, drawn = self._sums[self.names.index(name)]
        value = figure.of(whole[at], whole[at + 1])
        return float(value), figure.of(drawn[:, at], drawn[:, at + 1])

    def _line(self, name: str, figure: Figure) -> dict[str, Any]:
        value, drawn = self._values(name, figure)
        low, high = self._interval(drawn)
        difference = least = most = math.nan
        against = None
        if self.paired and name != self.against:
            against = self.against
            other, others = self._values(against, figure)
            with np.errstate(invalid="ignore"):  # inf - inf
                difference = float(np.subtract(value, other))
                least, most = self._interval(drawn - others)
        return {
            "model": name,
            "figure": figure.name,
            "rows": self[name].rows,
            "value": value,
            "low": low,
            "high": high,
            "against": against,
            "difference": difference,
            "difference_low": least,
            "difference_high": most,
        }

    def _interval(self, drawn: NDArray[np.float64]) -> tuple[float, float]:
        """The percentile interval of samples; NaN where none has a value."""
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return math.nan, math.nan
        tail = (1.0 - self.level) / 2.0
        # no interpolation: between infinities it would give NaN
        low, high = np.quantile(drawn, [tail, 1.0 - tail], method="nearest")
        return float(low), float(high)

    @property
    def note(self) -> str:
        """What the intervals are, and what is not compared, in words."""
        text = f"[{100 * self.level:g} % bootstrap interval over rows]"
        if len(self) == 1:
            return text
        if not self.paired:
            return f"{text} No differences: these evaluations are not of the same rows."
        return (
            f"{text} Δ: difference to {self.against}, paired over rows; of shares in points; "
            "≈: its interval holds 0."
        )

    def line(self, name: str, figure: Figure) -> dict[str, Any]:
        """The line of `frame` of a model and a figure."""
        at = self.names.index(name) * len(self.figures) + self.figures.index(figure)
        return {str(key): value for key, value in self.frame.iloc[at].items()}

    # -- forms ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Aligned columns: the figures, and below them the differences."""
        head = ["model", "rows", *(figure.heading for figure in self.figures)]
        lines, below = [head], [[f"Δ to {self.against}", "", *head[2:]]]
        for name in self.names:
            cells = [self.line(name, figure) for figure in self.figures]
            pairs = list(zip(self.figures, cells, strict=True))
            lines.append([name, str(self[name].rows), *(with_interval(*pair) for pair in pairs)])
            if self.paired and name != self.against:
                below.append([name, "", *(with_difference(*pair) for pair in pairs)])
        blocks = lines if len(below) == 1 else [*lines, *below]
        widths = [max(len(line[column]) for line in blocks) for column in range(len(head))]
        texts = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in blocks
        ]
        return "\n".join([*texts, self.note])

    def _repr_html_(self) -> str:
        from kdflow_lab.widgets._evaluation_html import table_html

        return table_html(self)

    def save(self, path: str | Path) -> Path:
        """Write the table; the end of the name says how: `.csv`, `.json` or `.html`.

        Raises:
            ConfigError: Another ending.
        """
        file = Path(path).expanduser()
        if file.suffix not in SAVES:
            raise ConfigError(f"{str(path)!r} ends in none of {', '.join(SAVES)}.")
        if file.suffix == ".csv":
            self.frame.to_csv(file, index=False)
        elif file.suffix == ".json":
            lines = json.loads(str(self.frame.to_json(orient="records")))
            about = {"schema": 1, "level": self.level, "samples": self.samples, "lines": lines}
            file.write_text(json.dumps(about, indent=1), encoding="utf-8")
        else:
            from kdflow_lab.widgets._evaluation_html import page_html

            file.write_text(page_html(self), encoding="utf-8")
        return file


def with_interval(figure: Figure, line: dict[str, Any]) -> str:
    """A value with its interval, such as `74.0 % [68.0, 80.0]`."""
    if math.isnan(line["value"]):
        return "-"
    ends = f"[{figure.bare(line['low'])}, {figure.bare(line['high'])}]"
    return f"{figure.text(line['value'])} {ends}"


def with_difference(figure: Figure, line: dict[str, Any]) -> str:
    """A difference with its interval, such as `≈ +6.0 [-1.0, +13.0]`; `-` where there is none."""
    if math.isnan(line["difference"]):
        return "-"
    low, high = (figure.bare(line[f"difference_{end}"], sign=True) for end in ("low", "high"))
    may_be_none = line["difference_low"] <= 0 <= line["difference_high"]
    about = "≈ " if may_be_none else ""
    return f"{about}{figure.bare(line['difference'], sign=True)} [{low}, {high}]"
