"""What a finished run leaves behind goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdflow_lab.engines import ENVIRONMENT

CHILD = """
import psutil
from kdflow_lab.memory import give_back

class Run:
    pass

def resident():
    return psutil.Process().memory_info().rss

before = resident()
run = Run()
run.itself = run
run.pieces = [b"x" * (1 << 20) for _ in range(200)]
used = resident()
del run
kept = resident()
give_back()
print(before, used, kept, resident())
"""
MB = 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_a_cycle_is_given_back() -> None:
    said = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    before, used, kept, after = map(int, said.stdout.split())
    assert used - before > 150 * MB
    assert kept - before > 150 * MB
    assert after - before < 30 * MB
