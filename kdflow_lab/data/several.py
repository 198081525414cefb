"""The data sets of a run put together, and what is said of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.table import TokenTable, join, of_source
from kdflow_lab.data.tokens import LISTED_IN_REPORT, Report

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig


class Several:
    """Tables and reports of one or several data sets, in the order of `config.sources`."""

    def __init__(self, config: DistillConfig) -> None:
        """Take the run's options; nothing is read here."""
        self._config = config
        self._tables: list[TokenTable] = []
        self._reports: list[Report] = []
        self._joined: TokenTable | None = None

    def add(self, table: TokenTable, report: Report) -> None:
        """Take the next data set."""
        if len(self._config.sources) > 1:
            first = sum(one.rows for one in self._reports)
            table = of_source(table, len(self._tables), first_row=first)
        self._tables.append(table)
        self._reports.append(report)
        self._joined = None

    @property
    def table(self) -> TokenTable:
        """All rows."""
        if self._joined is None:
            self._joined = join(self._tables)
        return self._joined

    def summary(self) -> dict[str, Any]:
        """Return what the `data` event says.

        As `Report.summary`, of all together; of several data sets also `sources`: of each its name,
        report, the number of its first row, its `share` of the rows that are learnt from, and
        `passes`, how often each of its rows comes over the run.
        """
        said = _together(self._reports).summary()
        sources = self._config.sources
        if len(sources) == 1:
            return said
        kept = [report.kept for report in self._reports]
        shares = Mixture(self._config.weights or kept).shares
        drawn = self._rows_drawn(sum(kept))
        of_each, first = [], 0
        for source, report, share in zip(sources, self._reports, shares, strict=True):
            one: dict[str, Any] = {"data": source.name, "split": source.split, **report.summary()}
            one |= {"first_row": first, "weight": source.weight, "share": round(share, 6)}
            if drawn is not None:
                one["passes"] = round(drawn * share / report.kept, 3)
            of_each.append(one)
            first += report.rows
        return {**said, "sources": of_each}

    def _rows_drawn(self, kept: int) -> float | None:
        """Rows of the data that the run learns from; not known before if some steps are written."""
        config = self._config
        if config.on_policy:
            return None
        if config.steps is not None:
            return config.steps * config.batch_size
        return (config.epochs or 1.0) * kept


def _together(reports: list[Report]) -> Report:
    """One report of several data sets."""
    counted = [field.name for field in dataclasses.fields(Report) if field.name != "bad_rows"]
    bad = [row for report in reports for row in report.bad_rows]
    return Report(
        **{name: sum(getattr(report, name) for report in reports) for name in counted},
        bad_rows=bad[:LISTED_IN_REPORT],
    )
