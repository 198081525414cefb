"""The reaper ends a lab's processes when the other end of its pipe is gone, however it went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdflow_lab import reaper

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
KERNEL = """
import os, subprocess, sys
reaper, folder, *pids = sys.argv[1:]
process = subprocess.Popen(
    [sys.executable, "-I", "-S", reaper, folder, *pids],
    stdin=subprocess.PIPE, start_new_session=True,
)
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lab's runtime folder with something in it."""
    runtime = tmp_path / "runtime"
    (runtime / "security").mkdir(parents=True)
    (runtime / "security" / "key").write_text("secret")
    return runtime


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that would sleep for long."""
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _start(folder: Path, pids: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__, str(folder), *map(str, pids)],
        stdin=subprocess.PIPE,
    )


def test_closed_pipe_ends_all_and_removes_the_folder(
    folder: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    process = _start(folder, [one.pid for one in sleepers])
    assert process.stdin is not None
    process.stdin.write(b"still here")
    process.stdin.flush()
    assert [one.poll() for one in sleepers] == [None, None]
    assert process.poll() is None
    process.stdin.close()
    assert [one.wait(60) for one in sleepers] == [-signal.SIGTERM, -signal.SIGTERM]
    assert process.wait(60) == 0
    assert not folder.exists()


def test_killed_kernel_ends_all(folder: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, reaper.__file__, str(folder)]
        + [str(one.pid) for one in sleepers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert kernel.stdout is not None and kernel.stdin is not None
    watcher = os.pidfd_open(int(kernel.stdout.readline()))
    assert [one.poll() for one in sleepers] == [None, None]
    kernel.kill()
    kernel.wait()
    for one in sleepers:
        one.wait(60)
    reaper._wait([watcher], 60)
    os.close(watcher)
    kernel.stdout.close()
    kernel.stdin.close()
    assert not folder.exists()


def test_process_that_ignores_sigterm_is_killed(folder: Path) -> None:
    stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    process = _start(folder, [stubborn.pid])
    process.communicate()
    assert stubborn.wait(60) == -signal.SIGKILL
    stubborn.stdout.close()
    assert process.returncode == 0


def test_process_that_has_ended_already_is_no_trouble(
    folder: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = _start(folder, [gone.pid, sleepers[0].pid])
    process.communicate()
    assert process.returncode == 0
    assert sleepers[0].wait(60) == -signal.SIGTERM
    assert sleepers[1].poll() is None  # not named, not ended
    assert not folder.exists()


def test_interrupt_of_the_terminal_does_not_end_the_watch(
    folder: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    process = _start(folder, [sleepers[0].pid])
    assert process.stdin is not None
    status = Path(f"/proc/{process.pid}/status")
    while True:  # until the reaper ignores SIGINT
        assert process.poll() is None
        (ignored,) = (line for line in status.read_text().splitlines() if "SigIgn" in line)
        if int(ignored.split()[1], 16) >> (signal.SIGINT - 1) & 1:
            break
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    assert process.wait(60) == 0
    assert sleepers[0].wait(60) == -signal.SIGTERM
