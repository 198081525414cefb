"""What a lab is at this moment, for people."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdflow_lab.config import LabConfig
    from kdflow_lab.engines import Engines
    from kdflow_lab.run import Run


@dataclass(frozen=True, slots=True)
class LabStatus:
    """Facts about a lab, as (name, value) lines.

    Attributes:
        state: `up`, `down` or `broken` (an engine died).
        lines: What to show, in order.
    """

    state: str
    lines: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, config: LabConfig, engines: Engines, runs: list[Run]) -> LabStatus:
        """Look at a lab's parts."""
        lines = [("teacher", config.teacher), ("student", config.student)]
        cluster, teacher = engines.cluster, engines.teacher
        if cluster is None or teacher is None:
            state = "down"
        else:
            lost = cluster.lost
            state = "broken" if lost else "up"
            lines += [
                ("backend", f"{teacher.backend} ({teacher.why})"),
                ("hidden states", f"{teacher.hidden_size} x {teacher.dtype}"),
                ("students", f"{config.students} on {engines.device}"),
                ("threads", f"{engines.threads(1 + config.students)} an engine"),
            ]
            if lost:
                lines.append(("died", ", ".join(lost)))
        lines += [(run.name, f"{run.state}, step {run.step} of {run.steps or '?'}") for run in runs]
        return cls(state, tuple(lines))

    def __str__(self) -> str:
        """The lines, aligned."""
        lines = [("lab", self.state), *self.lines]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in (("lab", self.state), *self.lines)
        )
        return f"<table>{rows}</table>"
