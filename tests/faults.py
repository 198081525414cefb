"""Training that is meant to be disturbed, and the ways to disturb it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import run_audit

import kdflow_lab as kd

SMALL: dict[str, Any] = {
    "rows": 128,
    "batch_size": 8,
    "max_length": 256,
    "micro_batch_tokens": 1024,
    "lr": 1e-3,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
    "checkpoint_every": 10,
}
SOON_S = 5.0
"""Within this time everybody knows of a dead process."""


def wait_for(condition: Callable[[], Any], *, seconds: float = 60, what: str = "it") -> Any:
    """Wait until `condition` is true and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.02)
    return value


def training(lab: kd.Lab, *, steps: int = 100_000, at: int = 2, **changes: Any) -> kd.Run:
    """Start a run and wait until it has taken `at` steps."""
    run = lab.distill(**{**SMALL, "steps": steps, **changes})
    reach(run, at)
    return run


def reach(run: kd.Run, step: int) -> None:
    """Wait until a run has taken `step` steps; one that ends before is an error."""
    wait_for(lambda: run.step >= step or run.state in ("failed", "stopped"), what=f"step {step}")
    assert run.step >= step, run.reason


def goes_on(run: kd.Run, *, steps: int = 3) -> None:
    """Wait until a run has taken some more steps."""
    reach(run, run.step + steps)


def state(run: kd.Run, wanted: str, *, seconds: float = 60) -> None:
    """Wait for a state."""
    wait_for(lambda: run.state == wanted, seconds=seconds, what=f"{run.name}: {wanted}")


def fails_soon(run: kd.Run, *, seconds: float = SOON_S) -> str:
    """Wait until a run has failed and return why."""
    state(run, "failed", seconds=seconds)
    return run.reason


def events(run: kd.Run, name: str) -> list[dict[str, Any]]:
    """The events of one kind, oldest first."""
    return [event for event in run.events if event["event"] == name]


def whole(run: kd.Run) -> None:
    """Hold that nothing of a run is lost, torn or done twice."""
    found = run_audit.problems(run.path)
    assert not found, "\n".join(found)


def same(run: kd.Run, other: kd.Run) -> None:
    """Hold that two runs are equal bit for bit: metrics, weights, optimizer, random state."""
    found = run_audit.differences(run, other)
    assert not found, "\n".join(found)


def pids(lab: kd.Lab) -> dict[str, int]:
    """The processes of a lab by role, its supervisor included."""
    assert lab._client is not None
    return {**lab._client.ask("status")["pids"], "supervisor": lab._client.record.pid}


def send(lab: kd.Lab, role: str, sign: signal.Signals = signal.SIGKILL) -> int:
    """Signal the process of a role and return its id."""
    pid = pids(lab)[role]
    os.kill(pid, sign)
    return pid


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """Mount a small file system at `folder`; skips the test where that is not permitted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill a disk but for `leave` bytes; remove the returned file to free it."""
    file = disk / "filler"
    with file.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while shutil.disk_usage(disk).free > leave:  # others may write meanwhile
            filler.write(bytes(1 << 16))
    return file
