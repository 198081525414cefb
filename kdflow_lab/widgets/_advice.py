"""One line of advice from the times of a run: who is waited for, and what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdflow_lab.widgets._timeline import Shares, idle, latest, shares

LEAST_STEPS = 5
"""Before that nothing is said."""
MUCH = 0.25
"""A wait of the students that is worth a word, as a share of the step."""
MOSTLY = 0.5
"""A role that waits for longer than this has time to spare."""


def advice(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """Say who is waited for in the last steps, and the option that would change it.

    Args:
        records: The metrics of the run in step order.
        config: Its options (`Run.config`), with those of its lab under `lab`.

    Returns:
        One line; empty where there is too little to judge by, or no teacher to wait for.
    """
    last = latest([record for record in records if record.get("step_s")])
    if len(last) < LEAST_STEPS or config.get("algorithm") == "sft":
        return ""
    roles = shares(last)
    students, teacher = roles["students"], roles["teacher"]
    lab = config.get("lab") or {}
    worst = max(("for_teacher", "for_answers", "weights"), key=lambda name: students[name])
    if students[worst] >= MUCH:
        if worst == "for_teacher":
            return _for_teacher(students, teacher, config, lab)
        return (_for_answers if worst == "for_answers" else _for_weights)(students, config)
    if last[-1].get("cached") == 1.0:
        return (
            "The teacher rests: all its hidden states come from the cache. Only more students or "
            "threads would be faster now."
        )
    if idle(teacher) >= MOSTLY:
        count = int(lab.get("students") or 1)
        return (
            f"Teacher idle {_percent(idle(teacher))}: student-bound. More students "
            f"(Lab(students={count + 1})) or more threads for them would be faster; a larger "
            "teacher costs little."
        )
    waits = ", ".join(f"{role} {_percent(idle(found))}" for role, found in roles.items())
    return f"Balanced: nobody waits long (idle: {waits})."


def _for_teacher(
    students: Shares, teacher: Shares, config: Mapping[str, Any], lab: Mapping[str, Any]
) -> str:
    waited = _percent(students["for_teacher"])
    if (phase := config.get("teacher_batches_per_phase")) is not None:
        return (
            f"Students idle {waited} while the teacher has the GPU. A fork with "
            f"teacher_batches_per_phase={2 * phase} changes turns half as often."
        )
    if config.get("depth") == 0:
        return (
            f"Students idle {waited}: depth=0 makes them and the teacher take turns. Fork with "
            "depth=2, and the teacher works ahead."
        )
    if idle(teacher) >= MUCH:
        return (
            f"Students idle {waited}, teacher idle {_percent(idle(teacher))}: they wait for each "
            f"other. Fork with a larger depth than {config.get('depth', 2)}, or smaller "
            "micro_batch_tokens."
        )
    replicas = int(lab.get("dp_size") or 1) + 1
    return (
        f"Students idle {waited}: teacher-bound. Add a teacher replica (Lab(dp_size={replicas}), "
        "SGLang) or devices (tp_size), or give the teacher more threads; more depth would not help."
    )


def _for_answers(students: Shares, config: Mapping[str, Any]) -> str:
    waited = _percent(students["for_answers"])
    staleness = int(config.get("max_staleness") or 0)
    if staleness == 0:
        return (
            f"Students wait {waited} for rollouts: strictly on-policy, they and the rollout engine "
            "take turns. Fork with max_staleness=1, and the next answers are written meanwhile."
        )
    return (
        f"Students wait {waited} for rollouts in spite of max_staleness={staleness}: "
        f"rollout-bound. Lower max_new_tokens ({config.get('max_new_tokens')}), learn more than "
        "once from an answer (steps_per_rollout), or give the rollout engine more devices or "
        "threads."
    )


def _for_weights(students: Shares, config: Mapping[str, Any]) -> str:
    every = 2 * int(config.get("sync_every") or 1)
    # the last of the steps between two hand-overs is taken on weights that are that much older
    staleness = every - 2 + int(config.get("steps_per_rollout") or 1)
    staleness = max(staleness, int(config.get("max_staleness") or 0))
    return (
        f"Handing weights over takes {_percent(students['weights'])} of the step. Fork with "
        f"sync_every={every} and max_staleness={staleness}: they go over half as often."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
