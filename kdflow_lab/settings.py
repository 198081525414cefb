"""What `set` has changed in a run, step by step, over all its attempts.

A run that is resumed from step 20 after it died at step 35 takes the steps from 21 on again, and a
change that was made at step 30 must be made at step 30 again: else a resumed run would not be the
run that went on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Timeline = list[tuple[int, dict[str, Any]]]


def timeline(events: Iterable[dict[str, Any]]) -> Timeline:
    """Read a run's changes from its events.

    A later change of an option at step s replaces what an earlier attempt had changed from s on.

    Returns:
        (step from which they hold, changes), in the order of the steps.
    """
    line: Timeline = []
    for event in events:
        if event["event"] != "set" or event.get("replayed"):
            continue
        line = [*replaced(line, int(event["step"]), event["changes"])]
    return sorted(line, key=lambda change: change[0])


def replaced(line: Timeline, step: int, changes: dict[str, Any]) -> Timeline:
    """Put changes into a timeline; what it said of these options from `step` on is dropped."""
    kept = []
    for at, old in line:
        left = old if at < step else {name: old[name] for name in old if name not in changes}
        if left:
            kept.append((at, left))
    return [*kept, (step, dict(changes))]


def in_force(line: Timeline, step: int) -> dict[str, Any]:
    """Return the changes that hold at `step`."""
    merged: dict[str, Any] = {}
    for at, changes in line:
        if at <= step:
            merged |= changes
    return merged
