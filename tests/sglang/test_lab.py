"""A lab whose teacher is SGLang: what it learns, and what the death of its engine costs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import leftovers
import numpy as np
import psutil
import pytest

import kdflow_lab as kd

OPTIONS: dict[str, Any] = {"data": "zoo/tasks", "rows": 256, "batch_size": 16, "lr": 1e-3}
SEEN_S = 3.0
START_S = 240.0
"""An engine that starts on a busy machine takes a minute."""

pytestmark = pytest.mark.timeout(2 * START_S)


def _folder(lab: kd.Lab) -> Path:
    assert lab.runtime_dir is not None
    return lab.runtime_dir


def _scheduler(lab: kd.Lab) -> psutil.Process:
    """The process of SGLang that runs the model."""
    for process in leftovers.processes_of(_folder(lab)):
        with contextlib.suppress(psutil.Error):
            if "sglang::scheduler" in " ".join(process.cmdline()):
                return process
    raise AssertionError("no scheduler runs")


def _values(run: kd.Run, column: str) -> Any:
    return np.asarray(run.metrics[column])


@pytest.fixture(scope="module")
def sglang_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    folder = str(tmp_path_factory.mktemp("runs"))
    lab = kd.Lab("zoo/teacher", "zoo/student", teacher_backend="sglang", threads=1, dir=folder)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def undisturbed(sglang_lab: kd.Lab) -> kd.Run:
    return sglang_lab.distill(**OPTIONS, steps=20).wait(timeout=START_S)


def test_a_run_is_the_same_on_either_backend(
    sglang_lab: kd.Lab, undisturbed: kd.Run, tmp_path: Path
) -> None:
    (started,) = faults.events(undisturbed, "started")
    assert started["backend"] == "sglang"
    assert started["engine_drift"]["largest"] < 1e-4
    assert started["engine_drift"]["tokens"] > 100
    with kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path)) as plain:
        other = plain.distill(**OPTIONS, steps=20).wait(timeout=START_S)
    assert faults.events(other, "started")[0]["backend"] == "transformers"
    for column in ("loss", "kd", "ce", "grad_norm"):
        np.testing.assert_allclose(
            _values(undisturbed, column), _values(other, column), rtol=1e-4, err_msg=column
        )
    scored = sglang_lab.evaluate("zoo/tasks", model="teacher", rows=8, generate=False)
    assert scored.kl == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def run_to_run(sglang_lab: kd.Lab, undisturbed: kd.Run) -> float:
    """How far the weights of two undisturbed runs are apart: SGLang may batch rows differently."""
    again = sglang_lab.distill(**OPTIONS, steps=20).wait(timeout=START_S)
    return _apart(again, undisturbed)


def _apart(run: kd.Run, other: kd.Run) -> float:
    """Largest difference of two runs' weights."""
    weights = run.student().state_dict()
    return max(
        float((weights[name] - tensor).abs().max())
        for name, tensor in other.student().state_dict().items()
    )


@pytest.mark.parametrize("moment", ["busy", "idle"])
def test_death_while_training_is_seen_healed_and_costs_nothing(
    sglang_lab: kd.Lab, undisturbed: kd.Run, run_to_run: float, moment: str
) -> None:
    """The scheduler dies in the middle of a pass, or while the run is paused."""
    run = sglang_lab.distill(**OPTIONS, steps=20, checkpoint_every=4)
    faults.reach(run, 6)
    scheduler = _scheduler(sglang_lab)
    if moment == "busy":
        faults.wait_for(lambda: scheduler.status() == psutil.STATUS_RUNNING, what="a pass")
    else:
        run.pause()
        faults.state(run, "paused")
    students = {role: pid for role, pid in faults.pids(sglang_lab).items() if "student" in role}
    scheduler.send_signal(signal.SIGKILL)
    reason = faults.fails_soon(run, seconds=SEEN_S)
    assert "teacher" in reason
    assert "resume" in reason
    assert faults.events(run, "worker_lost")[0]["roles"] == ["teacher"]
    run.resume()
    run.wait(timeout=START_S)
    assert students.items() <= faults.pids(sglang_lab).items()
    np.testing.assert_allclose(_values(run, "loss"), _values(undisturbed, "loss"), rtol=1e-5)
    apart = _apart(run, undisturbed)
    print(
        f"weights: {apart:.1e} from an undisturbed run's, two of which are {run_to_run:.1e} apart"
    )
    assert apart <= max(2 * run_to_run, 1e-6)


def test_death_while_idle_is_seen_and_healed(sglang_lab: kd.Lab) -> None:
    sglang_lab.up()
    before, scheduler = faults.pids(sglang_lab), _scheduler(sglang_lab)
    scheduler.send_signal(signal.SIGKILL)
    faults.wait_for(
        lambda: sglang_lab.status().state == "broken", seconds=SEEN_S, what="a broken lab"
    )
    sglang_lab.up()
    after = faults.pids(sglang_lab)
    assert {role for role in after if after[role] != before[role]} == {"teacher"}
    assert _scheduler(sglang_lab).pid != scheduler.pid
    assert sglang_lab.distill(**OPTIONS, steps=1).wait(timeout=START_S).state == "finished"


def test_a_killed_supervisor_leaves_nothing(sglang_lab: kd.Lab) -> None:
    """No process of SGLang's, and nothing in shared memory."""
    sglang_lab.close()
    before = leftovers.shared_memory()
    sglang_lab.up()
    folder = _folder(sglang_lab)
    mine = _of_sglang() - before
    assert mine, "there is something to leave"
    os.kill(faults.pids(sglang_lab)["supervisor"], signal.SIGKILL)
    assert leftovers.wait_until_gone(folder, seconds=10) == []
    assert mine & leftovers.left_in_shared_memory(before) == set()


def _of_sglang() -> set[str]:
    names = leftovers.shared_memory()
    return {name for name in names if name.startswith(("sglang_", "sem.kdflow-"))}
