"""Small measurements that go into metrics and events."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import sys
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
    "memory_bytes",
    "time",
)
"""What a line of `metrics.jsonl` holds; docs/architecture.md says what each is."""
LIBRARIES = ("torch", "transformers", "datasets", "ipyparallel", "sglang")


def memory_bytes() -> int:
    """Memory of this process: allocated at most on its GPU, else its resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


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
