"""Bad input, dead processes and the end of a lab: said clearly, nothing lost, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leftovers import processes_of, shared_memory, wait_until_gone

import kdflow_lab as kd
from kdflow_lab.errors import ClusterError, ConfigError, ModelError, RunError


def _failure(run: kd.Run) -> str:
    with pytest.raises(RunError) as caught:
        run.wait(timeout=60)
    assert run.state == "failed"
    return str(caught.value)


def test_malformed_rows_stop_the_run_before_it_starts(lab: kd.Lab, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"prompt": "Reverse: a b c", "response": "Reversed: c b a"}
    lines = [json.dumps(good), "{broken", json.dumps({**good, "response": ""}), json.dumps(good)]
    file.write_text("\n".join(lines))
    message = _failure(lab.distill(data=str(file), steps=1, batch_size=2))
    assert "rows.jsonl:2" in message
    assert "rows.jsonl:3" in message
    assert "on_bad_rows" in message

    skipped = lab.distill(data=str(file), steps=1, batch_size=2, on_bad_rows="skip").wait()
    data = next(event for event in skipped.events if event["event"] == "data")
    assert (data["kept"], data["skipped"]) == (2, 2)


def test_missing_data_is_one_sentence_and_the_lab_goes_on(lab: kd.Lab) -> None:
    message = _failure(lab.distill(data="./no-such-file.jsonl", steps=1))
    assert "no-such-file" in message
    assert lab.sft(rows=16, steps=1, batch_size=4).wait().state == "finished"


def test_model_that_cannot_be_loaded_is_said_before_engines_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'zoo/teacher'"):
        kd.Lab("zoo/techer", "zoo/student", dir=str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    lab = kd.Lab(str(broken), "zoo/student", threads=1, dir=str(tmp_path / "runs"))
    with pytest.raises(ModelError, match="broken"):
        lab.up()
    assert lab.status().state == "down"


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_killed_engine_fails_the_run_with_its_name(tmp_path: Path, role: str) -> None:
    before = shared_memory()
    lab = kd.Lab("zoo/teacher", "zoo/student", students=2, threads=1, dir=str(tmp_path)).up()
    assert lab._engines.cluster is not None
    runtime_dir = lab._engines.cluster.runtime_dir
    run = lab.distill(rows=256, steps=100_000, batch_size=16)
    while run.step < 2:
        time.sleep(0.05)
    started = next(event for event in run.events if event["event"] == "started")
    victim = started["ranks"][1]["pid"] if role == "student" else started["teacher_pid"]
    os.kill(victim, signal.SIGKILL)
    message = _failure(run)
    assert role in message.lower()
    lines = run.directory.metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert lab.status().state == "broken"
    with pytest.raises(ClusterError, match="has died"):
        lab.evaluate(rows=2)
    lab.close()
    assert wait_until_gone(runtime_dir, seconds=5) == []
    assert shared_memory() <= before


def test_close_ends_everything_also_under_an_active_run(tmp_path: Path) -> None:
    before = shared_memory()
    lab = kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(tmp_path)).up()
    assert lab._engines.cluster is not None
    runtime_dir = lab._engines.cluster.runtime_dir
    assert len(processes_of(runtime_dir)) >= 3
    run = lab.distill(rows=64, steps=100_000, batch_size=16)
    while run.step < 1:
        time.sleep(0.05)
    lab.close()
    assert wait_until_gone(runtime_dir, seconds=5) == []
    assert shared_memory() <= before
    assert run.state == "failed"
    assert "closed" in run.reason
    lab.close()  # a second time does nothing
    assert lab.status().state == "down"


KERNEL = """
import signal, sys, time, kdflow_lab as kd
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a background
lab = kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=sys.argv[1]).up()
run = lab.distill(rows=64, steps=100_000, batch_size=16)
while run.step < 1:
    time.sleep(0.05)
print(lab._engines.cluster.runtime_dir, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_kernel_however_it_ends(tmp_path: Path, end: signal.Signals) -> None:
    before = shared_memory()
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert kernel.stdout is not None
    runtime_dir = Path(kernel.stdout.readline().strip())
    assert len(processes_of(runtime_dir)) >= 3
    kernel.send_signal(end)
    kernel.wait(20)
    assert wait_until_gone(runtime_dir, seconds=10) == []
    assert shared_memory() <= before
    (run,) = kd.runs(tmp_path)
    assert run.state == "failed"
