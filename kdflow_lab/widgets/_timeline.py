"""Who waits for whom: what students, teacher and rollout engine did with the time of the steps.

Seconds come from `metrics.jsonl`. Of a stretch of steps the seconds are added up before they are
divided, so that a long step counts for more than a short one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECENT_STEPS = 50
"""Steps that the shares in words, and the advice, are about."""
BINS = 60
"""Stretches of the strip, at most."""
WARM_UP = 3
"""First steps of an attempt, which are left out of `recent`: everything is slow once."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What a role does with its time.

    Attributes:
        label: In the legend.
        colour: Of Okabe and Ito (2008), as in the other panels.
        pattern: Plotly's name of the hatch, for those who see no colours.
        idle: The role waits.
    """

    label: str
    colour: str
    pattern: str
    idle: bool = False


PHASES: dict[str, Phase] = {
    "works": Phase("works", "#0072B2", ""),
    "weights": Phase("hands weights over", "#009E73", "x"),
    "for_teacher": Phase("waits for the teacher", "#E69F00", "/", idle=True),
    "for_answers": Phase("waits for answers", "#CC79A7", "\\", idle=True),
    "for_students": Phase("waits for the students", "#999999", ".", idle=True),
}
ROLES = ("students", "teacher", "rollout")
"""From the bottom of the strip to its top."""

Shares = dict[str, float]
"""By phase: share of the time, 0 to 1; they add up to 1."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some steps in a row: the first, the last, and what each role did."""

    first: int
    last: int
    roles: dict[str, Shares]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the strip shows.

    Attributes:
        stretches: In step order; at most `BINS`.
        recent: By role, over the last steps; empty before the first step.
        steps: How many steps `recent` is about.
        seconds: By phase of the step, its mean seconds in these steps; see `seconds`.
    """

    stretches: list[Stretch]
    recent: dict[str, Shares]
    steps: int
    seconds: dict[str, float]

    @property
    def roles(self) -> list[str]:
        """The roles that the run has, from the bottom of the strip to its top."""
        return [role for role in ROLES if role in self.recent]

    def idle(self, role: str) -> float:
        """Share of the last steps that a role waited; NaN for one that the run does not have."""
        return idle(self.recent[role]) if role in self.recent else float("nan")


def idle(shares: Shares) -> float:
    """Add up the phases in which a role waits."""
    return sum(share for name, share in shares.items() if PHASES[name].idle)


def timeline(records: Sequence[Mapping[str, Any]], *, has_teacher: bool = True) -> Timeline:
    """Put the strip together.

    Args:
        records: The metrics of the run in step order.
        has_teacher: False for a run that learns from data alone: nobody waits there.
    """
    timed = [record for record in records if record.get("step_s")]
    last = latest(timed)
    stretches = [
        Stretch(part[0]["step"], part[-1]["step"], roles)
        for part in _stretches(timed)
        if (roles := shares(part, has_teacher=has_teacher))
    ]
    recent = shares(last, has_teacher=has_teacher)
    return Timeline(stretches, recent, len(last), seconds(last))


def latest(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the last steps; the first ones of the attempt are left out where others are there."""
    attempt = records[-1].get("attempt") if records else None
    warm = records[-RECENT_STEPS - WARM_UP :]
    of_attempt = [record for record in warm if record.get("attempt") == attempt]
    begins = len(of_attempt) < len(warm) or len(records) <= RECENT_STEPS
    if begins and len(of_attempt) > 2 * WARM_UP:
        of_attempt = of_attempt[WARM_UP:]
    return of_attempt[-RECENT_STEPS:]


def shares(records: Sequence[Mapping[str, Any]], *, has_teacher: bool = True) -> dict[str, Shares]:
    """Say what each role did in some steps.

    Returns:
        By role (`students`, `teacher` unless there is none, `rollout` on-policy): by phase, the
        share of the time; empty without a step that was timed.
    """
    total = _sum(records, "step_s")
    if not total:
        return {}

    def part(*names: str) -> float:
        return min(1.0, max(0.0, sum(_sum(records, name) for name in names) / total))

    weights = part("sync_s")
    for_teacher = min(part("teacher_wait_s") if has_teacher else 0.0, 1.0 - weights)
    for_answers = min(part("rollout_wait_s"), 1.0 - weights - for_teacher)
    found = {
        "students": {
            "works": 1.0 - weights - for_teacher - for_answers,
            "weights": weights,
            "for_teacher": for_teacher,
            "for_answers": for_answers,
        }
    }
    if has_teacher:
        busy = part("teacher_busy_s")
        found["teacher"] = {"works": busy, "for_students": 1.0 - busy}
    if any("rollout_s" in record for record in records):
        busy = min(part("rollout_s"), 1.0 - weights)
        found["rollout"] = {
            "works": busy,
            "weights": weights,
            "for_students": 1.0 - busy - weights,
        }
    return found


def seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds a step of each phase.

    Returns:
        `step`, `rollout` (the engine writes), `sync` (weights handed over), `teacher` (it computes,
        all students' micro-batches together) and `student step` (forward, backward, update: what is
        left of the step beside waiting and the hand-over). Those that the run does not have are
        left out.
    """
    if not records:
        return {}

    def mean(name: str) -> float:
        return _sum(records, name) / len(records)

    waits = mean("teacher_wait_s") + mean("rollout_wait_s") + mean("sync_s")
    found = {"step": mean("step_s")}
    if any("rollout_s" in record for record in records):
        found |= {"rollout": mean("rollout_s"), "sync": mean("sync_s")}
    if any(record.get("teacher_busy_s") for record in records):
        found["teacher"] = mean("teacher_busy_s")
    found["student step"] = max(0.0, found["step"] - waits)
    return found


def _stretches(records: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Cut the steps into stretches of one length, a power of two, so that edges seldom move."""
    size = 1
    while len(records) / size > BINS:
        size *= 2
    return [list(records[at : at + size]) for at in range(0, len(records), size)]


def _sum(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(record.get(name) or 0.0 for record in records))


def words(line: Timeline) -> str:
    """The idle share of every role in one line, such as `students 12 % · teacher 40 %`."""
    return " · ".join(f"{role} {100 * line.idle(role):.0f} %" for role in line.roles)


def phase_words(line: Timeline) -> str:
    """Seconds of each phase in one line, such as `rollout 0.21 s · teacher 0.08 s`."""
    return " · ".join(f"{name} {value:.3g} s" for name, value in line.seconds.items())
