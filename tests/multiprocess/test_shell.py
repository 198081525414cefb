"""The shell's `kdflow` from data to an exported student, in processes of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import kdflow_lab as kd

# As the console script, with Ctrl-C working also where the tests run in a background.
START = """
import signal, sys
from kdflow_lab.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
KDFLOW = [sys.executable, "-c", START]
MODELS = ["--teacher", "zoo/teacher", "--student", "zoo/student", "--threads", "1"]


def test_distil_export_and_look_at_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    data = tmp_path / "my.jsonl"
    rows = [{"prompt": f"Reverse: {a} b c", "response": f"Reversed: c b {a}"} for a in "xyzw"]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    runs, student = str(tmp_path / "runs"), tmp_path / "my-student"
    done = subprocess.run(
        [
            *(*KDFLOW, "distill", *MODELS, "--data", str(data), "--steps", "3"),
            *("--batch-size", "2", "--dir", runs, "--export", str(student), "--name", "mine"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(student) in done.stdout
    AutoModelForCausalLM.from_pretrained(student)
    listed = subprocess.run(
        [*KDFLOW, "runs", "--dir", runs], capture_output=True, text=True, check=True
    ).stdout
    assert "mine" in listed and "finished" in listed and "3/3" in listed


def test_interrupt_stops_the_run_and_keeps_its_weights(tmp_path: Path) -> None:
    shell = subprocess.Popen(
        [
            *(*KDFLOW, "distill", *MODELS, "--rows", "64", "--steps", "100000"),
            *("--batch-size", "8", "--dir", str(tmp_path), "--name", "long"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    metrics = tmp_path / "long" / "metrics.jsonl"
    while not metrics.exists():
        assert time.monotonic() < deadline and shell.poll() is None
        time.sleep(0.1)
    shell.send_signal(signal.SIGINT)
    out, error = shell.communicate(timeout=60)
    assert shell.returncode == 0, error
    assert "the weights are kept" in error
    assert "kdflow export" in out
    run = kd.open_run(tmp_path / "long")
    assert run.state == "stopped"
    run.student()
