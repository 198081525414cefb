"""Memory of a run's processes: real ones, below this test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from kdflow_lab import processes
from kdflow_lab.units import size
from kdflow_lab.usage import pss_bytes
from kdflow_lab.widgets._memory import Use, gpu_bytes, memory, words

HOLDS = 30_000_000
CHILD = f"import sys; held = bytearray({HOLDS}); print(len(held), flush=True); sys.stdin.read()"
PARENT = f"""
import subprocess, sys
child = [sys.executable, "-c", {CHILD!r}]
names = ["-m ipyparallel.engine", "ipyparallel.engine.nanny", "x", "ipyparallel.controller"]
made = []
for name in names:
    made.append(subprocess.Popen([*child, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    made[-1].stdout.readline()
print(*(one.pid for one in made), flush=True)
sys.stdin.read()
for one in made:
    one.communicate()
"""


@pytest.fixture(scope="module")
def family() -> Iterator[tuple[int, list[int]]]:
    """A process with four children that hold memory; their commands are those of a cluster."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    yield parent.pid, children
    parent.communicate()  # ends the children first
    assert parent.returncode == 0
    assert [pid for pid in children if processes.born(pid) is not None] == []


def _queued(pid: int) -> dict[str, object]:
    return {"event": "queued", "pid": pid, "born": processes.born(pid)}


def test_roles_are_told_by_events_and_by_command(family):
    parent, (engine, _, third, _) = family
    unnamed = memory([_queued(parent)])
    assert [(use.role, use.count) for use in unnamed] == [
        ("supervisor", 1),
        ("controller", 1),
        ("rollout", 1),
        ("others", 2),
    ]
    started = {"event": "started", "ranks": [{"pid": third}], "teacher_pid": engine}
    named = memory([_queued(parent), started])
    assert [use.role for use in named] == [
        "supervisor",
        "controller",
        "teacher",
        "student 0",
        "others",
    ]
    for use in named[1:]:
        assert HOLDS < use.pss_bytes < 2.5 * HOLDS


def test_processes_of_a_role_are_added_up(family):
    parent, children = family
    (use,) = [one for one in memory([_queued(parent)]) if one.role == "others"]
    nanny, other = pss_bytes(children[1]), pss_bytes(children[2])
    assert nanny is not None and other is not None
    assert use.pss_bytes == pytest.approx(nanny + other, rel=0.05)


def test_another_process_of_the_same_id_is_not_the_supervisor(family):
    parent, _ = family
    assert memory([_queued(parent) | {"born": 1}]) == []
    assert memory([]) == []
    assert memory([{"event": "queued", "pid": parent}]) == []  # of an older version


def test_a_process_that_is_gone_has_no_size():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert pss_bytes(done.pid) is None
    mine = pss_bytes(os.getpid())
    assert mine is not None and mine <= psutil.Process().memory_info().rss


def test_the_gpu_is_named_only_where_there_is_one():
    records = [{"memory_bytes": 5_000_000_000}]
    assert gpu_bytes(records, [{"event": "started", "device": "cuda"}]) == 5_000_000_000
    assert gpu_bytes(records, [{"event": "started", "device": "cpu"}]) is None
    assert gpu_bytes([], [{"event": "started", "device": "cuda"}]) is None


def test_sizes_in_words():
    assert [size(51_400_000), size(1_234_000_000)] == ["51 MB", "1.23 GB"]
    uses = [Use("supervisor", 51_000_000, 1), Use("student 0", 2_000_000_000, 1)]
    assert words(uses) == "supervisor 51 MB · student 0 2.00 GB"
