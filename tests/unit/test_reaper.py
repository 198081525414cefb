"""The guardian ends a lab when its supervisor is gone, however it went."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FINISHED, RUNNING, write_run

from kdflow_lab import processes, reaper, runtime
from kdflow_lab.run import Run

SUPERVISOR = """
import subprocess, sys
guardian = subprocess.Popen(
    [sys.executable, "-m", "kdflow_lab.reaper", sys.argv[1]],
    stdin=subprocess.PIPE, start_new_session=True,
)
print(guardian.pid, flush=True)
sys.stdin.read()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
Engine = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lab's runtime folder with something in it."""
    made = tmp_path / "lab-x"
    (made / "security").mkdir(parents=True)
    (made / "security" / "key").write_text("secret")
    return made


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """Starts processes of the lab; what is left of them is killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, processes.MARKER: str(folder)}
        process = subprocess.Popen(command or ("sleep", "600"), env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a guardian, which carries the lab's marker as everything of the lab does."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdflow_lab.reaper", str(folder)],
        stdin=subprocess.PIPE,
        env={**os.environ, processes.MARKER: str(folder)},
    )


def test_closed_pipe_ends_all_and_removes_the_folder(folder: Path, engine: Engine) -> None:
    engines = [engine(), engine()]
    guardian = _start(folder)
    assert guardian.stdin is not None
    guardian.stdin.write(b"still here")
    guardian.stdin.flush()
    time.sleep(0.2)
    assert [one.poll() for one in (*engines, guardian)] == [None, None, None]
    guardian.stdin.close()
    assert [one.wait(60) for one in engines] == [-signal.SIGKILL] * 2
    assert guardian.wait(60) == 0
    assert not folder.exists()


def test_killed_supervisor_ends_all(folder: Path, engine: Engine) -> None:
    sleeper = engine()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, processes.MARKER: str(folder)},
    )
    assert supervisor.stdout is not None and supervisor.stdin is not None
    watcher = os.pidfd_open(int(supervisor.stdout.readline()))
    assert sleeper.poll() is None
    supervisor.kill()
    supervisor.wait()
    assert sleeper.wait(60) == -signal.SIGKILL
    processes.wait([watcher], 60)
    assert processes.ended([watcher])
    os.close(watcher)
    supervisor.stdout.close()
    supervisor.stdin.close()
    assert not folder.exists()


def test_stubborn_engine_is_killed_and_strangers_are_not(folder: Path, engine: Engine) -> None:
    stubborn = engine(sys.executable, "-c", STUBBORN)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        _start(folder).communicate()
        assert stubborn.wait(60) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_active_runs_are_said_to_have_failed(folder: Path, tmp_path: Path) -> None:
    active = write_run(tmp_path / "active", RUNNING)
    ended = write_run(tmp_path / "ended", FINISHED)
    parked = write_run(tmp_path / "parked", (*RUNNING, ("paused", {}), ("parked", {})))
    listed = [str(run.path) for run in (active, ended, parked)]
    runtime.write_private(folder / runtime.RUNS, json.dumps([*listed, str(tmp_path / "gone")]))
    _start(folder).communicate()
    assert (active.state, active.reason) == ("failed", reaper.REASON)
    assert [event["event"] for event in active.events][-2:] == ["worker_lost", "failed"]
    assert active.events[-2]["roles"] == ["supervisor"]
    assert Run(ended.path).state == "finished"
    assert Run(parked.path).state == "paused"
    assert not folder.exists()


def test_list_of_runs_that_is_torn_is_no_trouble(folder: Path, engine: Engine) -> None:
    (folder / runtime.RUNS).write_text('["/some')
    sleeper, guardian = engine(), _start(folder)
    guardian.communicate()
    assert guardian.returncode == 0
    assert sleeper.wait(60) == -signal.SIGKILL
    assert not folder.exists()


def test_supervisor_that_ended_in_good_order_leaves_nothing_to_do(
    folder: Path, engine: Engine
) -> None:
    sleeper = engine()
    guardian = _start(folder)
    (folder / "security" / "key").unlink()
    (folder / "security").rmdir()
    folder.rmdir()
    guardian.communicate()
    assert guardian.returncode == 0
    assert sleeper.poll() is None


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_does_not_end_the_watch(folder: Path, engine: Engine, sign: signal.Signals) -> None:
    sleeper = engine()
    guardian = _start(folder)
    status = Path(f"/proc/{guardian.pid}/status")
    while True:  # until the guardian ignores it
        assert guardian.poll() is None
        (ignored,) = (line for line in status.read_text().splitlines() if "SigIgn" in line)
        if int(ignored.split()[1], 16) >> (sign - 1) & 1:
            break
    guardian.send_signal(sign)
    guardian.communicate()
    assert guardian.returncode == 0
    assert sleeper.wait(60) == -signal.SIGKILL
