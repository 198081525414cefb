"""The comparison of several runs: curves, what differs, what they reached, where they parted.

It reads run directories alone and shows the runs, living or ended, as they are when it is shown.
A notebook gets two outputs, because it draws one form of each only: the curves (plotly, or SVG
where no JavaScript runs) and the tables and probe texts (HTML). A terminal prints the latter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdflow_lab.errors import ConfigError
from kdflow_lab.run import Run
from kdflow_lab.widgets._compare_data import LOOKS, Compared, compared
from kdflow_lab.widgets._compare_probes import Probes, parted, probes
from kdflow_lab.widgets._compare_strips import html, text
from kdflow_lab.widgets._compare_svg import draw
from kdflow_lab.widgets._compare_tables import differences, evaluations, results
from kdflow_lab.widgets._static import PLOTLY_MIME
from kdflow_lab.widgets._table import Table

MOST = len(LOOKS)


class Comparison:
    """Several runs beside each other; a notebook shows it when it is a cell's last value."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Take the runs in the order of their colours; one that is given twice counts once.

        Raises:
            ConfigError: There is no run, or there are more than `MOST`.
        """
        unique = {run.path: run for run in runs}
        if not 1 <= len(unique) <= MOST:
            raise ConfigError(
                f"Cannot compare {len(unique)} runs: give 1 to {MOST}, so that their lines can be "
                "told apart."
            )
        self.runs = list(unique.values())
        # a Run is read by one thread at a time, and the caller's may have a reader
        self._readers = [type(run)(run.path) for run in self.runs]

    def svg(self) -> str:
        """Everything as it is now, curves and tables, as an SVG document."""
        data = compared(self._readers)
        return draw(data, self._headline(), _tables(data, probes(data)))

    def save(self, path: str | Path) -> Path:
        """Write curves and tables as an SVG file."""
        file = Path(path)
        file.write_text(self.svg(), encoding="utf-8")
        return file

    def __repr__(self) -> str:
        """The tables, aligned, and the probe texts."""
        data = compared(self._readers)
        return _text(data, probes(data))

    def _headline(self) -> str:
        count = len(self.runs)
        return f"Comparison of {count} runs" if count > 1 else self.runs[0].name

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """All forms in one bundle, for whoever asks without displaying."""
        data = compared(self._readers)
        found = probes(data)
        tables = _tables(data, found)
        return {
            **self._curves(data),
            "image/svg+xml": draw(data, self._headline(), tables),
            "text/html": _html(data, found, before=draw(data, self._headline())),
            "text/plain": _text(data, found),
        }

    def _ipython_display_(self) -> None:
        """Show the curves and, below them, the tables and probe texts."""
        from IPython.display import display

        data = compared(self._readers)
        found = probes(data)
        display(self._curves(data), raw=True)
        forms = {"text/html": _html(data, found), "text/plain": _text(data, found)}
        display(forms, raw=True)

    def _curves(self, data: Compared) -> dict[str, Any]:
        """The mimebundle of the curves alone."""
        from kdflow_lab.widgets._compare_plotly import figure

        return {
            PLOTLY_MIME: json.loads(figure(data).to_json() or "{}"),
            "image/svg+xml": draw(data, self._headline()),
            "text/plain": self._headline(),
        }


def _tables(data: Compared, found: Probes | None = None) -> list[Table]:
    tables = [results(data), evaluations(data), differences(data)]
    if found:
        tables.append(parted(found))
    return [table for table in tables if table.rows]


def _html(data: Compared, found: Probes | None, before: str = "") -> str:
    shown = "".join(table.html() for table in _tables(data, found))
    return f'<div style="overflow-x:auto">{before}{shown}{html(found) if found else ""}</div>'


def _text(data: Compared, found: Probes | None) -> str:
    shown = [table.text() for table in _tables(data, found)]
    return "\n\n".join([*shown, text(found)] if found else shown)
