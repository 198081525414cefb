"""Random faults against short runs: all of them end as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_in_25_random_faults() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--faults", "25", "--seed", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.stdout.splitlines()[-1:] == ["25 faults, 0 lost"], done.stderr[-2000:]
    assert done.returncode == 0
