"""Where a run came from: a fork goes on from a step of its parent, which may itself be a fork.

A fork's `config.yaml` holds `parent: {run: <directory>, step: <int>}`; its metrics begin at the
step after. The parent may have been deleted since: then only its name is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab.errors import RunError
from kdflow_lab.run import Run


@dataclass(frozen=True, slots=True)
class Fork:
    """The point where a run left its parent."""

    path: Path
    """The parent's run directory, which need not exist any more."""
    step: int
    """The parent's last step that the fork shares; the fork's own first step is the next."""
    parent: Run | None
    """The parent; None if its directory is gone."""

    def __str__(self) -> str:
        """Such as `base, step 200`."""
        return f"{self.path.name}, step {self.step}{'' if self.parent else ', deleted'}"


def ancestry(run: Run, known: Mapping[Path, Run]) -> list[Fork]:
    """Follow a run to its beginning.

    Args:
        run: Where to begin.
        known: Runs by their directory that are open already: reading them twice takes time.

    Returns:
        The forks from the nearest on; empty for a run that is none. It ends at a deleted parent.
    """
    forks: list[Fork] = []
    seen = {run.path}
    current: Run | None = run
    while current is not None:
        asked = current.config.get("parent")
        if not asked:
            break
        path = Path(asked["run"])
        if path in seen:  # written by hand: a circle has no beginning
            break
        seen.add(path)
        current = known.get(path) or _open(path)
        forks.append(Fork(path, int(asked["step"]), current))
    return forks


def _open(path: Path) -> Run | None:
    run = Run(path)
    try:
        run.config  # noqa: B018 - it raises where there is no run
    except RunError:
        return None
    return run


def inherited(forks: list[Fork], count: int) -> list[dict[str, Any]]:
    """Return the last `count` metrics records, or fewer, that a fork shares with its ancestors."""
    records: list[dict[str, Any]] = []
    until = None
    for fork in forks:
        missing = count - len(records)
        if missing <= 0 or fork.parent is None:
            break
        until = fork.step if until is None else min(until, fork.step)
        shared = [record for record in fork.parent.records if record["step"] <= until]
        records = shared[-missing:] + records
    return records
