"""What every benchmark says in the same way: the machine, its timings, one JSON object last."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on, and how busy it is (also with the benchmark)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "torch": version("torch"),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def timing(repeats_s: Sequence[float]) -> dict[str, float]:
    """Median and minimum of repeats, in milliseconds."""
    return {
        "median_ms": round(1e3 * statistics.median(repeats_s), 4),
        "min_ms": round(1e3 * min(repeats_s), 4),
        "repeats": len(repeats_s),
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Print the one JSON object that a benchmark ends with."""
    print(json.dumps(result), flush=True)
