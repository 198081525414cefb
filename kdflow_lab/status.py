"""What a lab is at this moment, for people."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdflow_lab.config import LabConfig
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
    def of(
        cls, config: LabConfig, folder: Path | None, said: dict[str, Any] | None, runs: list[Run]
    ) -> LabStatus:
        """Put together what the lab's supervisor said (None if it does not live) and its runs."""
        lines = [("teacher", config.teacher), ("student", config.student)]
        state = "down" if said is None else said["state"]
        if said is not None and folder is not None:
            lines.append(("lab", folder.name))
            teacher = said["teacher"]
            if teacher is not None:
                lines += [
                    ("backend", f"{teacher.backend} ({teacher.why})"),
                    ("hidden states", f"{teacher.hidden_size} x {teacher.dtype}"),
                    ("students", f"{config.students} on {said['device']}"),
                    ("threads", f"{said['threads']} an engine"),
                ]
            if (rollout := said.get("rollout")) is not None:
                lines.append(("rollouts", f"{rollout.backend} ({rollout.why})"))
            if said["lost"]:
                lines.append(("died", ", ".join(said["lost"])))
            lines.append(("attached", ", ".join(said["kernels"])))
        lines += [(run.name, f"{run.state}, step {run.step} of {run.steps or '?'}") for run in runs]
        return cls(state, tuple(lines))

    def __str__(self) -> str:
        """The lines, aligned."""
        lines = [("state", self.state), *self.lines]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in (("state", self.state), *self.lines)
        )
        return f"<table>{rows}</table>"
