"""What must hold of a run directory, whatever happened to the processes that wrote it.

`problems` reads it from outside, as a stranger would: only the files, nothing of the package but
the check of a checkpoint's sizes. The tests and `scripts/soak.py` use it.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from kdflow_lab.checkpoints import check
from kdflow_lab.run import Run

SETTLED = ("finished", "stopped", "parked")
VARYING = (
    "attempt tokens_per_s step_s teacher_wait_s teacher_busy_s memory_bytes time "
    "rollout_s rollout_wait_s sync_s students_idle teacher_idle rollout_idle".split()
)  # what differs between two runs that are the same


def problems(path: Path) -> list[str]:
    """Say what is wrong with a run directory; empty when nothing is."""
    found: list[str] = []
    events, metrics, commands = (
        _lines(path / f"{name}.jsonl", found) for name in ("events", "metrics", "control")
    )
    found += _steps(events, metrics)
    found += _answers(events, commands)
    if events and events[-1]["event"] in SETTLED:
        found += [f"{left} was left behind" for left in (path / "checkpoints").glob(".*")]
    found += _checkpoints(path, events)
    return found


def differences(run: Run, other: Run) -> list[str]:
    """Say in which step or tensor two runs differ, bit for bit; empty when in none."""
    found = []
    ours, theirs = ({record["step"]: record for record in one.records} for one in (run, other))
    for step in sorted({*ours, *theirs}):
        mine, its = ours.get(step, {}), theirs.get(step, {})
        names = ({*mine, *its}).difference(VARYING)
        if wrong := [name for name in sorted(names) if mine.get(name) != its.get(name)]:
            found.append(f"step {step} differs in {', '.join(wrong)}")
    ours, theirs = (tensors(one.path / "checkpoints" / str(one.step)) for one in (run, other))
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name]):
            found.append(f"{name} of the last checkpoint differs")
    return found


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a checkpoint: weights, optimizer and random state."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whole.pt"
        dcp_to_torch_save(checkpoint, file)
        return dict(_flat(torch.load(file, weights_only=False)))


def _flat(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if not isinstance(value, dict):
        return []
    return [pair for key in value for pair in _flat(value[key], f"{name}/{key}")]


def _lines(file: Path, found: list[str]) -> list[dict[str, Any]]:
    """Read a file of JSON objects; a line that is none is a problem."""
    objects = []
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text and not text.endswith("\n"):
        found.append(f"{file.name} ends in a line that is cut")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            objects.append({**json.loads(line)})
        except (ValueError, TypeError):
            found.append(f"{file.name}:{number} is no JSON object: {line[:60]!r}")
    return objects


def _steps(events: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> list[str]:
    """Every attempt's steps follow each other, from where it says it began."""
    found = []
    begun = {one["attempt"]: one["from_step"] for one in events if one["event"] == "started"}
    following = {attempt: step + 1 for attempt, step in begun.items()}
    for record in metrics:
        attempt, step = record["attempt"], record["step"]
        if following.get(attempt) != step:
            found.append(f"attempt {attempt} has step {step}, not {following.get(attempt)}")
        following[attempt] = step + 1
    attempts = [record["attempt"] for record in metrics]
    if attempts != sorted(attempts):
        found.append(f"attempts are mixed: {attempts}")
    last = metrics[-1]["step"] if metrics else 0
    lineage = min(begun.values(), default=0)
    missing = {*range(lineage + 1, last + 1)} - {record["step"] for record in metrics}
    if missing:
        found.append(f"no metrics of steps {sorted(missing)}")
    return found


def _answers(events: list[dict[str, Any]], commands: list[dict[str, Any]]) -> list[str]:
    """No command is obeyed twice, and nothing is answered that nobody asked."""
    asked = [command["id"] for command in commands]
    answered = [event["id"] for event in events if event.get("id")]
    twice = {one for one in answered if answered.count(one) > 1}
    strange = {one for one in answered if one not in asked}
    return [f"command {one} was obeyed twice" for one in twice] + [
        f"command {one} was answered, and never given" for one in strange
    ]


def _checkpoints(path: Path, events: list[dict[str, Any]]) -> list[str]:
    """Follow what was announced: an attempt begins at the newest, and the last ones are there.

    A checkpoint that a warning calls damaged does not count.
    """
    found = []
    config = (path / "config.yaml").read_text(encoding="utf-8")
    keep_last = int(re.findall(r"^keep_last: (\d+)", config, re.MULTILINE)[0])
    announced: list[int] = []
    for event in events:
        if event["event"] == "checkpoint":
            announced = sorted({*announced, event["step"]})[-keep_last:]
        elif event["event"] == "warning":
            for step in re.findall(r"checkpoints/(\d+)\b", event["message"]):
                announced = [one for one in announced if one != int(step)]
        elif event["event"] == "started":
            start = event["from_step"]
            if announced and max(announced) > start:
                found.append(
                    f"attempt {event['attempt']} began at step {start}, though the checkpoint of "
                    f"step {max(announced)} was announced"
                )
            announced = [one for one in announced if one <= start]
    for step in announced:
        if problem := check(path / "checkpoints" / str(step)):
            found.append(f"announced and not there: {problem}")
    return found
