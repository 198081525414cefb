"""The state of a run in text, for a terminal: what its figure says in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.progress import summary
from kdflow_lab.rundir import ENDED
from kdflow_lab.units import size
from kdflow_lab.widgets._advice import advice
from kdflow_lab.widgets._memory import gpu_bytes, memory, words
from kdflow_lab.widgets._news import news
from kdflow_lab.widgets._timeline import phase_words, timeline
from kdflow_lab.widgets._timeline import words as idle_words

if TYPE_CHECKING:
    from kdflow_lab.run import Run

NEWS = 5
"""Alarms, warnings and changes that are listed."""


def report(run: Run) -> str:
    """Say where a run stands, who waited for whom, what its processes take, and what happened.

    Args:
        run: Living or ended; lines about times and memory are left out where nothing is known.

    Returns:
        Lines of text, the summary first and the run's directory second.
    """
    records, events = run.records, run.events
    lines = [str(summary(run)), str(run.path)]
    has_teacher = any(event.get("backend") for event in events if event["event"] == "started")
    line = timeline(records, has_teacher=has_teacher)
    if line.recent:
        lines.append(f"idle     last {line.steps} steps: {idle_words(line)}")
        lines.append(f"a step   {phase_words(line)}")
    if said := advice(records, run.config):
        lines.append(f"advice   {said}")
    if run.state not in ENDED and (uses := memory(events)):
        total = size(sum(use.pss_bytes for use in uses))
        lines.append(f"memory   {words(uses)} · {total} in all")
    if (on_gpu := gpu_bytes(records, events)) is not None:
        lines.append(f"GPU      {size(on_gpu)} at most, of a student")
    for one in news(events, NEWS):
        step = "" if one["step"] is None else f"step {one['step']}, "
        lines.append(f"{one['kind']:<8} {step}{one['when']}: {one['text']}")
        if one["tokens"]:
            lines.append(f"         {one['tokens']}")
    return "\n".join(lines)
