"""A lab's processes are found by their marker and ended for good: real processes throughout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdflow_lab import processes

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], start_new_session=True)
child.wait()
"""
PHOENIX = """
import os, signal, sys, time
def again(*_):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    os._exit(0)
signal.signal(signal.SIGTERM, again)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A lab's folder; whatever carries its marker is gone after the test."""
    yield tmp_path
    for pidfd in processes.marked(tmp_path).values():
        processes.send(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Start a process of the lab and read its first line."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, processes.MARKER: str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    return process


def _found(folder: Path, **options: object) -> set[int]:
    found = processes.marked(folder, **options)  # type: ignore[arg-type]
    for pidfd in found.values():
        os.close(pidfd)
    return set(found)


def test_children_of_children_are_found_and_others_are_not(folder: Path) -> None:
    process = _start(folder, sys.executable, "-c", PARENT)
    stranger = subprocess.Popen(["sleep", "600"])
    neighbour = subprocess.Popen(
        ["sleep", "600"], env={**os.environ, processes.MARKER: f"{folder}2"}
    )
    try:
        found = _found(folder)
        assert process.pid in found
        assert len(found) == 3  # Python, its shell in another session, and the shell's sleep
        assert not found & {stranger.pid, neighbour.pid, os.getpid()}
        assert _found(folder, spare={process.pid}) == found - {process.pid}
        processes.end(folder, grace_s=0)
        assert process.wait(60) == -signal.SIGKILL
        assert _found(folder) == set()
        assert stranger.poll() is None and neighbour.poll() is None
    finally:
        for other in (stranger, neighbour):
            other.kill()
            other.wait()


def test_process_that_obeys_is_not_killed(folder: Path) -> None:
    process = _start(folder, "sh", "-c", "echo ready; exec sleep 600")
    processes.end(folder, grace_s=60)
    assert process.wait(60) == -signal.SIGTERM


def test_process_that_ignores_sigterm_is_killed(folder: Path) -> None:
    process = _start(folder, sys.executable, "-c", STUBBORN)
    processes.end(folder, grace_s=0.1)
    assert process.wait(60) == -signal.SIGKILL


def test_process_that_forks_while_it_is_ended_leaves_nothing(folder: Path) -> None:
    process = _start(folder, sys.executable, "-c", PHOENIX)
    processes.end(folder, grace_s=5)
    assert process.wait(60) == 0  # it obeyed, but had a child that nobody had listed
    assert _found(folder) == set()


def test_end_spares_who_is_named_and_needs_nobody(folder: Path) -> None:
    processes.end(folder)
    process = _start(folder, "sh", "-c", "echo ready; exec sleep 600")
    processes.end(folder, spare={process.pid})
    assert process.poll() is None


def test_pidfd_never_hits_a_process_with_the_same_number(folder: Path) -> None:
    """What is held is the process, not its number: a signal after its end reaches nobody."""
    process = _start(folder, "sh", "-c", "echo ready; exec sleep 600")
    (pidfd,) = processes.marked(folder).values()
    process.kill()
    process.wait()  # from here on the number may be anybody's
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    processes.send(pidfd, signal.SIGKILL)  # and that is no error
    os.close(pidfd)


def test_birth_tells_processes_of_one_number_apart() -> None:
    me = os.getpid()
    assert processes.born(me) == processes.born(me)
    process = subprocess.Popen(["sleep", "600"])
    later = processes.born(process.pid)
    assert later is not None and later >= (processes.born(me) or 0)
    process.kill()
    deadline = time.monotonic() + 60
    while processes.born(process.pid) is not None:  # a zombie lives no more
        assert time.monotonic() < deadline
    process.wait()
    assert processes.born(process.pid) is None


def test_birth_of_a_process_with_a_wild_name(tmp_path: Path) -> None:
    wild = tmp_path / "a) R 1 (b"
    os.symlink("/bin/sleep", wild)
    process = subprocess.Popen([wild, "600"])
    try:
        assert processes.born(process.pid) is not None
    finally:
        process.kill()
        process.wait()


def test_wait_returns_when_all_have_ended_and_gives_up_in_time() -> None:
    quick, slow = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "600"])
    held = [os.pidfd_open(one.pid) for one in (quick, slow)]
    processes.wait(held[:1], 60)
    assert processes.ended(held) == set(held[:1])
    start = time.monotonic()
    processes.wait(held, 0.2)
    assert 0.2 <= time.monotonic() - start < 30
    slow.kill()
    processes.wait(held, 60)
    assert processes.ended(held) == set(held)
    for one in (quick, slow):
        one.wait()
    for pidfd in held:
        os.close(pidfd)
