"""The strip "who waits for whom" as a part of a run's SVG."""

from __future__ import annotations

from html import escape

from kdflow_lab.widgets._panels import INK, STRIP_TITLE
from kdflow_lab.widgets._timeline import PHASES, Timeline

BAND, GAP = 18, 5
"""Height of a role's band, and between two, in pixels."""
LABEL = 6.1
"""Width of a character of the legend, about."""


def strip(line: Timeline, *, width: float, last: int) -> list[str]:
    """Draw the strip with its corner at the origin.

    Args:
        line: What every role did.
        width: Of the bands.
        last: The step at their right end; they begin at step 0, as the panels do.
    """
    parts = [
        _patterns(),
        f'<text y="-10" font-size="13" font-weight="bold">{STRIP_TITLE}</text>',
        *_legend(width),
    ]
    # the role that the others serve comes last: rollout, teacher, students from top to bottom
    for row, role in enumerate(reversed(line.roles)):
        y = row * (BAND + GAP)
        parts.append(
            f'<text x="-6" y="{y + 13}" text-anchor="end" font-size="11">{escape(role)}</text>'
        )
        parts.append(
            f'<text x="{width + 6:g}" y="{y + 13}">{100 * line.idle(role):.0f} % idle</text>'
        )
        for name, phase in PHASES.items():
            path = _path(line, role, name, y, width / max(1, last))
            if path:
                parts.append(f'<path d="{path}" fill="{phase.colour}"/>')
                if phase.pattern:
                    parts.append(f'<path d="{path}" fill="url(#kdflow-{name})"/>')
    if not line.roles:
        parts.append(f'<text x="{width / 2:g}" y="20" text-anchor="middle">nothing timed</text>')
    return parts


def height(line: Timeline) -> int:
    """Height of the bands in pixels."""
    return max(1, len(line.roles)) * (BAND + GAP)


def _path(line: Timeline, role: str, phase: str, top: float, scale: float) -> str:
    """The bars of one phase of one role, as one path."""
    names = list(PHASES)
    bars = []
    for one in line.stretches:
        found = one.roles.get(role, {})
        tall = BAND * found.get(phase, 0.0)
        if tall < 0.05:
            continue
        below = BAND * sum(found.get(name, 0.0) for name in names[: names.index(phase)])
        left, wide = scale * (one.first - 1), scale * (one.last - one.first + 1)
        bars.append(f"M{left:.1f} {top + BAND - below:.1f}v-{tall:.1f}h{wide:.1f}v{tall:.1f}z")
    return "".join(bars)


def _patterns() -> str:
    """Hatches, for those who see no colours."""
    drawn = {"/": "M0 6L6 0", "\\": "M0 0L6 6", "x": "M0 0L6 6M0 6L6 0", ".": "M3 2.5v1"}
    return "".join(
        f'<pattern id="kdflow-{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<path d="{drawn[phase.pattern]}" stroke="#fff" stroke-opacity=".6" fill="none"/>'
        "</pattern>"
        for name, phase in PHASES.items()
        if phase.pattern
    )


def _legend(width: float) -> list[str]:
    """A square and a name for each phase, right-aligned above the strip."""
    parts, x = [], width
    for name, phase in reversed(PHASES.items()):
        x -= LABEL * len(phase.label)
        square = f'x="{x - 14:.0f}" y="-19" width="10" height="10"'
        parts.append(f'<text x="{x:.0f}" y="-10" fill="{INK}">{escape(phase.label)}</text>')
        parts.append(f'<rect {square} fill="{phase.colour}"/>')
        if phase.pattern:
            parts.append(f'<rect {square} fill="url(#kdflow-{name})"/>')
        x -= 26
    return parts
