"""The list of runs in a folder, living or not, as a table for people."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.progress import summary

if TYPE_CHECKING:
    from kdflow_lab.run import Run

HEADINGS = ("RUN", "STATE", "STEP", "LOSS", "STARTED", "FROM")


class RunList(list["Run"]):
    """Runs, oldest first; a list that shows itself as a table with the lineage of forks."""

    def lines(self) -> list[tuple[str, ...]]:
        """Return a line of text cells a run, under `HEADINGS`."""
        return [_line(run) for run in self]

    def __repr__(self) -> str:
        """Aligned columns."""
        lines = [HEADINGS, *self.lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name.lower()}</th>" for name in HEADINGS)
        rows = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in line)
            + "</tr>"
            for line in self.lines()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _line(run: Run) -> tuple[str, ...]:
    now = summary(run)
    events = run.events
    started = time.localtime(events[0]["time"]) if events else None
    attempts = sum(event["event"] == "starting" for event in events)
    parent = run.parent
    return (
        now.name,
        now.state + (f" ({attempts} attempts)" if attempts > 1 else ""),
        f"{now.step}/{now.steps or '?'}",
        "" if now.loss is None else f"{now.loss:.4g}",
        time.strftime("%Y-%m-%d %H:%M", started) if started else "",
        "" if parent is None else f"{Path(parent['run']).name}@{parent['step']}",
    )
