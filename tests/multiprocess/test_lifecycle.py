"""Whoever of a lab dies: the run says so or goes on, nothing is lost, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults import (
    SMALL,
    SOON_S,
    events,
    fails_soon,
    goes_on,
    pids,
    send,
    state,
    training,
    wait_for,
    whole,
)
from leftovers import left_in_shared_memory, processes_of, shared_memory, wait_until_gone

import kdflow_lab as kd
from kdflow_lab.errors import ClusterError

GONE_S = 10.0
"""Within this time a lab that ends has left nothing behind."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A lab with one student whose supervisor may be killed: the next use starts another."""
    lab = kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path_factory.mktemp("runs")))
    yield lab
    lab.close()


@pytest.fixture
def nothing_in_shared_memory() -> Iterator[None]:
    """Hold that a test leaves no file in /dev/shm."""
    before = shared_memory()
    yield
    assert left_in_shared_memory(before) == set()


def _folder(lab: kd.Lab) -> Path:
    assert lab.runtime_dir is not None
    return lab.runtime_dir


def _guardian(folder: Path) -> psutil.Process | None:
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "kdflow_lab.reaper" in process.cmdline():
                return process
    return None


@pytest.mark.parametrize("role", ["teacher", "student 0", "student 1"])
def test_killed_engine_is_named_and_replaced_alone(lab: kd.Lab, role: str) -> None:
    run = training(lab)
    before = pids(lab)
    victim = send(lab, role)
    reason = fails_soon(run)
    assert role in reason
    assert "resume" in reason
    (lost,) = events(run, "worker_lost")
    assert (lost["roles"], lost["pids"]) == ([role], [victim])
    assert lab.status().state == "broken"
    whole(run)

    lab.up()
    assert lab.status().state == "up"
    changed = {name for name, pid in pids(lab).items() if before[name] != pid}
    assert changed == {role}


@pytest.mark.usefixtures("nothing_in_shared_memory")
@pytest.mark.parametrize(
    ("role", "sign"), [("controller", signal.SIGKILL), ("supervisor", signal.SIGTERM)]
)
def test_end_of_controller_or_supervisor_ends_the_lab(
    mortal: kd.Lab, role: str, sign: signal.Signals
) -> None:
    run = training(mortal.up())
    folder = _folder(mortal)
    send(mortal, role, sign)
    assert role in fails_soon(run)
    assert wait_until_gone(folder, seconds=GONE_S) == []
    assert mortal.status().state == "down"
    whole(run)


def test_teacher_that_dies_while_a_run_is_paused_costs_no_student(lab: kd.Lab) -> None:
    """Paused ranks hear that the run has failed, and leave it; their engines stay."""
    run = training(lab, steps=6)
    run.pause()
    state(run, "paused")
    before = pids(lab)
    send(lab, "teacher")
    assert "teacher" in fails_soon(run)
    assert run.resume().wait(timeout=120).state == "finished"
    after = pids(lab)
    assert {role for role in before if before[role] != after[role]} == {"teacher"}
    whole(run)


@pytest.mark.usefixtures("nothing_in_shared_memory")
def test_guardian_is_replaced_and_ends_the_lab_of_a_killed_supervisor(mortal: kd.Lab) -> None:
    run = training(mortal.up())
    folder = _folder(mortal)
    first = wait_for(lambda: _guardian(folder), seconds=SOON_S)
    first.kill()
    wait_for(
        lambda: (now := _guardian(folder)) is not None and now.pid != first.pid,
        seconds=SOON_S,
        what="another guardian",
    )
    goes_on(run)

    send(mortal, "supervisor")
    assert "supervisor" in fails_soon(run)
    assert events(run, "worker_lost")[0]["roles"] == ["supervisor"]
    assert wait_until_gone(folder, seconds=GONE_S) == []
    with pytest.raises(ClusterError, match=r"no living lab|No lab"):
        kd.Lab.attach(folder.name)
    whole(run)


KERNEL = """
import json, signal, sys, time, kdflow_lab as kd
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a background
lab = kd.Lab("zoo/teacher", "zoo/student", students=2, threads=1, dir=sys.argv[1]).up()
run = lab.distill(**json.loads(sys.argv[2]))
while run.step < 2:
    time.sleep(0.02)
print(lab.runtime_dir, flush=True)
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("nothing_in_shared_memory")
def test_run_outlives_its_kernel_and_obeys_the_next_one_which_may_close_the_lab(
    tmp_path: Path,
) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(tmp_path), json.dumps({**SMALL, "steps": 100_000})],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # as Jupyter starts kernels; it signals their process group
    )
    assert kernel.stdout is not None
    folder = Path(kernel.stdout.readline().strip())
    (run,) = kd.runs(tmp_path)
    before = {process.pid for process in processes_of(folder)}
    os.killpg(kernel.pid, signal.SIGINT)
    assert kernel.stdout.readline() == "interrupted\n"
    goes_on(run)
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait(SOON_S)
    goes_on(run)
    assert {process.pid for process in processes_of(folder)} == before

    lab = kd.Lab.attach(tmp_path)
    assert [one.path for one in lab.runs] == [run.path]
    (mine,) = lab.runs
    mine.pause()
    state(mine, "paused")
    mine.resume(lr=5e-4)
    goes_on(mine)
    lab.close()
    assert wait_until_gone(folder, seconds=GONE_S) == []
    assert run.state == "failed"
    assert "closed" in run.reason
    assert "resume" in run.reason
    lab.close()  # a second time does nothing
    assert lab.status().state == "down"
    whole(run)


@pytest.mark.usefixtures("nothing_in_shared_memory")
def test_lab_without_kernels_parks_its_paused_run_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDFLOW_LINGER_S", "0.5")
    lab = kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path)).up()
    folder = _folder(lab)
    run = training(lab)
    run.pause()
    state(run, "paused")
    lab.detach()
    assert wait_until_gone(folder, seconds=GONE_S) == []
    assert (run.state, run.parked) == ("paused", True)
    assert run.checkpoints[-1] == run.step
    whole(run)


@pytest.mark.usefixtures("nothing_in_shared_memory")
def test_end_of_the_lease_stops_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDFLOW_LINGER_S", "0.5")
    lab = kd.Lab(
        "zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path), lease_hours=1 / 3600
    ).up()
    folder = _folder(lab)
    run = training(lab)
    waiting = lab.distill(**SMALL, steps=5)
    lab.detach()
    state(run, "stopped", seconds=2 * SOON_S)
    assert run.checkpoints[-1] == run.step > 0
    assert "lease" in events(run, "warning")[-1]["message"]
    assert wait_until_gone(folder, seconds=GONE_S) == []
    assert waiting.state == "stopped"
    whole(run)
