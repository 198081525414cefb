"""Memory of a run's processes, where they live on this machine and are this user's.

Of a process the proportional set size counts (PSS): a page that n processes share counts 1/n in
each, so the ring and shared libraries are not counted twice and the processes can be added up. Who
is who comes from the run's events; what hangs on the supervisor besides is told by its command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab import processes
from kdflow_lab.units import size
from kdflow_lab.usage import pss_bytes

ORDER = ("supervisor", "controller", "teacher", "student", "rollout", "others")


@dataclass(frozen=True, slots=True)
class Use:
    """What the processes of one role take.

    Attributes:
        role: `supervisor`, `controller`, `teacher`, `student 0` …, `rollout` or `others`.
        pss_bytes: Of all its processes together.
        count: How many these are.
    """

    role: str
    pss_bytes: int
    count: int


def memory(events: Sequence[Mapping[str, Any]]) -> list[Use]:
    """Look at the processes of a run.

    Args:
        events: Of the run.

    Returns:
        By role, supervisor first; empty if its lab has ended, lives on another machine, or belongs
        to another user.
    """
    supervisor = _supervisor(events)
    if supervisor is None:
        return []
    known = _known(events)
    sums: dict[str, list[int]] = {}
    # the tree from its root: a child that is nobody of its own belongs to its parent's role
    todo = [(supervisor, "supervisor")]
    children = _children()
    while todo:
        pid, role = todo.pop()
        if (used := pss_bytes(pid)) is not None:
            sums.setdefault(role, []).append(used)
        for child in children.get(pid, ()):
            below = "others" if role in ("supervisor", "controller") else role
            todo.append((child, known.get(child) or _by_command(child) or below))
    return [
        Use(role, sum(sums[role]), len(sums[role]))
        for role in sorted(sums, key=lambda one: (ORDER.index(one.partition(" ")[0]), _rank(one)))
    ]


def gpu_bytes(
    records: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> int | None:
    """Return what torch held at most on a student's GPU; None for a run on the CPU."""
    started = [event for event in events if event["event"] == "started"]
    if not records or not started or started[-1].get("device") != "cuda":
        return None
    return records[-1].get("memory_bytes")


def words(uses: Iterable[Use]) -> str:
    """One line, such as `supervisor 51 MB · teacher 310 MB`."""
    return " · ".join(f"{use.role} {size(use.pss_bytes)}" for use in uses)


def _supervisor(events: Sequence[Mapping[str, Any]]) -> int | None:
    """The lab's supervisor, if that very process lives here."""
    queued = [event for event in events if event["event"] == "queued"]
    if not queued or "born" not in queued[-1]:
        return None
    pid = int(queued[-1]["pid"])
    return pid if processes.born(pid) == queued[-1]["born"] else None


def _known(events: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Roles that the events name, by process."""
    known: dict[int, str] = {}
    for event in events:
        if event["event"] == "started":
            ranks = event.get("ranks") or ()
            known = {one["pid"]: f"student {rank}" for rank, one in enumerate(ranks)}
            if event.get("teacher_pid"):
                known[event["teacher_pid"]] = "teacher"
        elif event["event"] == "worker_back":
            known |= dict(zip(event["pids"], event["roles"], strict=False))
    return known


def _by_command(pid: int) -> str | None:
    """What a process below the supervisor is that no event names."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    if b"ipyparallel.controller" in command:
        return "controller"
    # teacher and students are named by the `started` event: the one engine left writes rollouts
    is_engine = b"ipyparallel.engine" in command and b"ipyparallel.engine.nanny" not in command
    return "rollout" if is_engine else None


def _children() -> dict[int, list[int]]:
    """The children of every process of this machine."""
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (folder / "stat").read_bytes()
                parent = int(stat[stat.rfind(b")") + 2 :].split()[1])
                found.setdefault(parent, []).append(int(folder.name))
    return found


def _rank(role: str) -> int:
    number = role.partition(" ")[2]
    return int(number) if number.isdigit() else 0
