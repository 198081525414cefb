"""What a run's figure shows in four panels and a strip, once for the live and the static figure.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell
apart; lines of one panel differ in their dashes as well.
"""

from __future__ import annotations

from dataclasses import dataclass

INK = "#7b7b7b"
"""Text and axes: readable on white (4.2 : 1) and on a dark page."""
GRID = "rgba(128,128,128,0.25)"
STUDENT, TEACHER = "#0072B2", "#E69F00"
"""The two models, wherever both are drawn."""


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity in a panel."""

    quantity: str
    """A key of `kdflow_lab.widgets._series.QUANTITIES`."""
    label: str
    colour: str
    dash: str = "solid"
    """`solid`, `dash` or `dot`."""
    second: bool = False
    """Drawn against the axis on the right."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A set of axes."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    second_unit: str = ""
    """Title of the axis on the right; that axis shows percentages."""
    from_zero: bool = False
    """Whether the left axis begins at 0."""


PANELS = (
    Panel("Loss", "nats / token", (Line("loss", "loss", "#0072B2"),)),
    Panel(
        "KD and CE",
        "nats / token",
        (Line("kd", "KD", "#D55E00"), Line("ce", "CE", "#56B4E9", "dash")),
    ),
    Panel("Agreement, top-1", "% of tokens", (Line("agreement", "agreement", "#009E73"),)),
    Panel(
        "Speed",
        "tokens / s",
        (
            Line("tokens_per_s", "tokens/s", "#8c8c8c"),
            Line("students_wait", "students wait", "#CC79A7", "dash", second=True),
            Line("teacher_idle", "teacher idle", "#E69F00", "dot", second=True),
        ),
        second_unit="% of the step",
        from_zero=True,
    ),
)
"""In reading order: two a row."""
STRIP_TITLE = "Who waits for whom"
"""The strip below the panels; its phases are `kdflow_lab.widgets._timeline.PHASES`."""


def explanation(window: int, *, marked: bool) -> str:
    """What thin and bold lines and the marks mean, said once, at the first panel.

    Args:
        window: Steps of the running mean.
        marked: Whether the run has marks.
    """
    parts = [f"thin: each step, bold: mean of {window}"] if window > 1 else []
    return ", ".join(parts + ["◆ set"] * marked)
