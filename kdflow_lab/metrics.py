"""Small measurements that go into metrics and events."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import sys
from collections.abc import Mapping
from typing import Any

COLUMNS = (
    "step",
    "attempt",
    "loss",
    "kd",
    "ce",
    "agreement",
    "lr",
    "grad_norm",
    "tokens",
    "total_tokens",
    "tokens_per_s",
    "step_s",
    "teacher_wait_s",
    "teacher_busy_s",
    "students_idle",
    "teacher_idle",
    "memory_bytes",
    "time",
)
"""What a line of `metrics.jsonl` holds; docs/architecture.md says what each is."""
LIBRARIES = ("torch", "transformers", "peft", "datasets", "ipyparallel", "sglang")


def memory_bytes() -> int:
    """Memory of this process: allocated at most on its GPU, else its resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


def idle_shares(times: Mapping[str, Any], *, has_teacher: bool = True) -> dict[str, float | None]:
    """Say for which share of a step each role waited for the others.

    Args:
        times: Seconds: `step_s`, `teacher_wait_s` and `teacher_busy_s`; on-policy `rollout_wait_s`,
            `rollout_s` and `sync_s` too. A time that is missing counts as none.
        has_teacher: False for a run that learns from data alone.

    Returns:
        `students_idle`, `teacher_idle` (None without a teacher) and, on-policy, `rollout_idle`: 0
        to 1. A teacher or a rollout engine that works ahead may be busy for longer than the step
        took that its work is counted with; it was not idle then. Handing weights over is work.
    """

    def idle(seconds: float) -> float:
        step_s = float(times.get("step_s") or 0.0)
        return min(1.0, max(0.0, seconds / step_s)) if step_s else 0.0

    def spent(*names: str) -> float:
        return sum(float(times.get(name) or 0.0) for name in names)

    shares: dict[str, float | None] = {
        "students_idle": idle(spent("teacher_wait_s", "rollout_wait_s")),
        "teacher_idle": 1.0 - idle(spent("teacher_busy_s")) if has_teacher else None,
    }
    if "rollout_s" in times:
        shares["rollout_idle"] = 1.0 - idle(spent("rollout_s", "sync_s"))
    return shares


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Make a record JSON: nine significant digits for floats, None for what is not a number."""
    return {name: _plain(value) for name, value in record.items()}


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None
