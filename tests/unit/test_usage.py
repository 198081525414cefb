"""What processes take at most: of real processes, and when a run is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from small_disk import run_on_small_disk

from kdflow_lab import usage
from kdflow_lab.rundir import RunDirectory

CHILD = """
import sys
block = bytearray(60_000_000)
block[:] = b"x" * len(block)
del block
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_peak_of_a_process_outlives_its_memory() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        peak = usage.peak_bytes(child.pid)
        by_role = usage.peak_by_role(os.getpid(), {child.pid: "teacher"})
        child.stdin.close()
    assert peak is not None and peak > 60_000_000
    assert by_role["teacher"] > 60_000_000
    assert by_role["supervisor"] > 5_000_000
    assert usage.peak_bytes(child.pid) is None


def test_a_run_is_measured_after_its_first_steps(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({"steps": 100})
    directory.metrics_file.write_text("".join(f'{{"step": {n}}}\n' for n in range(5)))
    watch = usage.Usage(directory)  # what stands there already is of an earlier attempt

    def measured() -> list[int]:
        events = [json.loads(line) for line in directory.events_file.read_text().splitlines()]
        return [event["after_steps"] for event in events if event["event"] == "memory"]

    directory.event("started")
    for step in range(1, 60):
        with directory.metrics_file.open("a") as file:
            file.write(f'{{"step": {step}}}\n')
        watch.look({"teacher": os.getpid()})
        watch.look({"teacher": os.getpid()})
    assert measured() == [3, 12, 50]


def test_full_disk_ends_no_watch(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.usage import Usage
disk = Path(sys.argv[1])
directory = RunDirectory(disk / "run")
directory.create({"steps": 100})
watch = Usage(directory)
directory.metrics_file.write_text("".join(f'{{"step": {n}}}\\n' for n in range(5)))
with (disk / "filler").open("ab", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(512))
    except OSError:
        pass
watch.look({"teacher": os.getpid()})
print("memory" in (directory.events_file.read_text() if directory.events_file.exists() else ""))
"""
    assert run_on_small_disk(script, tmp_path / "disk", kib=128) == "False\n"
