"""Which checkpoints of a run are whole, which one to go on from, and which ones stay.

`kdflow_lab.student.checkpoint` writes and reads what is in them. A checkpoint is whole when its
folder has the name of its step and every file has the size that `state.json` says.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from kdflow_lab.errors import RunError
from kdflow_lab.rundir import RunDirectory

STATE = "state.json"


def newest_whole(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that is not damaged.

    Returns:
        Its folder, None if there is none, and what is wrong with newer ones.
    """
    problems = []
    for step in reversed(directory.checkpoint_steps()):
        path = directory.checkpoints / str(step)
        problem = check(path)
        if not problem:
            return path, problems
        problems.append(problem)
    return None, problems


def check(path: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty string."""
    try:
        sizes = read_state(path)["files"]
    except RunError as error:
        return str(error)
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.exists() else 0
        if found != size:
            return (
                f"The checkpoint {path} is damaged: {name} has {found:,} bytes, expected {size:,}."
            )
    return ""


def read_state(path: Path) -> dict[str, Any]:
    """Read the `state.json` of a checkpoint.

    Raises:
        RunError: There is none, or it is no such file.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return {"step": 0, "files": {}, "ranks": 1, "device": "cpu", **state}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is no whole checkpoint: {error}.") from None


def tidy(directory: RunDirectory, newest: Path | None) -> None:
    """Clear up behind an earlier attempt; called by who holds the run's lock.

    What it left half-written goes. Damaged checkpoints beyond the one that is taken are set aside:
    they must not count among those that stay. `prune` removes them, when there is a new one.

    Args:
        directory: The run's.
        newest: The checkpoint that the run goes on from.
    """
    for left in (*directory.checkpoints.glob(".*.tmp"), *directory.checkpoints.glob(".*.old")):
        shutil.rmtree(left, ignore_errors=True)
    for step in directory.checkpoint_steps():
        if newest is None or step > int(newest.name):
            path = directory.checkpoints / str(step)
            aside = path.with_name(f".{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def prune(directory: RunDirectory, *, keep_last: int, best: int | None) -> list[int]:
    """Remove old checkpoints; rank 0 calls it.

    Args:
        directory: The run's.
        keep_last: How many of the newest stay.
        best: A step whose checkpoint stays as well.

    Returns:
        The steps that were removed.
    """
    old = [step for step in directory.checkpoint_steps()[:-keep_last] if step != best]
    for step in old:
        gone = directory.checkpoints / f".{step}.old"
        os.replace(directory.checkpoints / str(step), gone)  # none is ever half there
        shutil.rmtree(gone, ignore_errors=True)
    for damaged in directory.checkpoints.glob(".*.damaged"):
        shutil.rmtree(damaged, ignore_errors=True)
    return old
