"""The strip "who waits for whom" in plotly: a band a role, a bar a stretch of steps.

One trace a phase holds the bars of all roles, so that the number of traces does not depend on the
run. What a stretch amounts to in numbers is said by one invisible trace a role: the phases would
otherwise be one line each of the hover box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from kdflow_lab.widgets._panels import INK
from kdflow_lab.widgets._timeline import PHASES, ROLES, Shares, Stretch, Timeline

BAND = 0.82
"""Height of a band; the bands are 1 apart."""


def traces() -> list[Any]:
    """Build the traces without data: the bars of each phase, and what the hover box says a role."""
    bars = [
        go.Bar(
            name=phase.label,
            marker={
                "color": phase.colour,
                "line": {"width": 0},
                "pattern": {
                    "shape": phase.pattern,
                    "fillmode": "overlay",
                    "fgcolor": "rgba(255,255,255,0.7)",
                    "size": 6,
                    "solidity": 0.2,
                },
            },
            hoverinfo="skip",
        )
        for phase in PHASES.values()
    ]
    said = [
        go.Bar(
            name=role,
            opacity=0,
            marker={"color": INK},
            hovertemplate="%{customdata}<extra></extra>",
        )
        for role in ROLES
    ]
    return [*bars, *said]


def style(figure: Any) -> None:
    """The strip's axes; what is idle now stands at the right of each band."""
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(range=[-0.05, 2.85], showgrid=False, zeroline=False, row=3, col=1)
    axis = next(figure.select_yaxes(row=3, col=1))
    axis.update(tickmode="array", tickvals=[], ticktext=[], fixedrange=True)
    reference = figure.data[-1].yaxis or "y"
    for place in range(len(ROLES)):
        figure.add_annotation(
            text="",
            name=f"idle {place}",
            x=1.0,
            xref="paper",
            xanchor="left",
            xshift=6,
            y=place + BAND / 2,
            yref=reference,
            showarrow=False,
            font={"size": 11},
        )


def fill(figure: Any, strip: list[Any], line: Timeline) -> None:
    """Put data into the strip, inside of a batch: bars, labels and numbers are one message.

    Each message is one more drawing of the whole figure, which takes a page longer than all else.
    """
    bars, said = strip[: len(PHASES)], strip[len(PHASES) :]
    roles, stretches = line.roles, line.stretches
    for name, trace in zip(PHASES, bars, strict=True):
        trace.x, trace.width, trace.base, trace.y = _bars(name, roles, stretches)
        trace.customdata = []  # every trace of a batch sets the same: see `_plotly.fill`
    for role, trace in zip(ROLES, said, strict=True):
        there = [one for one in stretches if role in one.roles]
        place = roles.index(role) if role in roles else 0
        trace.x = np.array([_middle(one) for one in there], np.float32)
        trace.width = np.array([one.last - one.first + 1 for one in there], np.float32)
        trace.base = np.full(len(there), place, np.float32)
        trace.y = np.full(len(there), BAND, np.float32)
        trace.customdata = [_sentence(role, one) for one in there]
    axis = next(figure.select_yaxes(row=3, col=1))
    if list(axis.ticktext or ()) != roles:
        axis.tickvals = [place + BAND / 2 for place in range(len(roles))]
        axis.ticktext = roles
        axis.range = [-0.05, len(roles) - 0.13] if roles else [0, 1]
    notes = [one for one in figure.layout.annotations if (one.name or "").startswith("idle ")]
    for place, note in enumerate(notes):
        text = f"{100 * line.idle(roles[place]):.0f} % idle" if place < len(roles) else ""
        if note.text != text:
            note.text = text


def _bars(phase: str, roles: list[str], stretches: list[Stretch]) -> tuple[np.ndarray, ...]:
    """Middle, width, foot and height of the bars of one phase."""
    rows = []
    for place, role in enumerate(roles):
        for one in stretches:
            found = one.roles.get(role, {})
            if found.get(phase):
                below = _below(phase, found)
                rows.append(
                    (
                        _middle(one),
                        one.last - one.first + 1,
                        place + BAND * below,
                        BAND * found[phase],
                    )
                )
    array = np.array(rows, np.float32).reshape(-1, 4)
    return tuple(array[:, column].copy() for column in range(4))


def _below(phase: str, shares: Shares) -> float:
    """Where a phase begins in its band: what comes before it in the legend lies below it."""
    names = list(PHASES)
    return sum(shares.get(name, 0.0) for name in names[: names.index(phase)])


def _middle(one: Stretch) -> float:
    return (one.first + one.last) / 2


def _sentence(role: str, one: Stretch) -> str:
    steps = f"step {one.first}" if one.first == one.last else f"steps {one.first} to {one.last}"
    parts = [
        f"{PHASES[name].label} {100 * share:.0f} %"
        for name, share in one.roles[role].items()
        if share >= 0.005
    ]
    return f"{role}, {steps}: {', '.join(parts)}"
