"""The doctor at places: folders, sockets, disk and cores of this machine, and what it advises."""

from __future__ import annotations

import os
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.config import LabConfig
from kdflow_lab.doctor import places
from kdflow_lab.transport.sockets import listen


def _lab(**options: Any) -> LabConfig:
    return LabConfig(teacher="zoo/teacher", student="zoo/student", device="cpu", **options)


def test_this_machine_has_what_a_lab_needs(tmp_path: Path) -> None:
    for finding in (
        places.runtime_folder(),
        places.sockets(),
        places.disk(tmp_path, 1e6, 2),
        places.shared_memory("transformers"),
    ):
        assert finding.fits, finding


def test_a_runtime_folder_that_is_open_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("KDFLOW_RUNTIME", str(tmp_path / "open"))
    finding = places.runtime_folder()
    assert not finding.fits
    assert "KDFLOW_RUNTIME" in finding.advice
    assert not places.sockets().fits


@pytest.mark.parametrize("over", [0, 1])
def test_a_path_that_is_too_long_for_sockets(over: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is the kernel's: at the last length that is allowed, a socket can be bound."""
    with tempfile.TemporaryDirectory() as name:
        most = places.UNIX_PATH_BYTES - places.LONGEST_BELOW
        root = Path(name) / ("x" * (most - len(os.fsencode(name)) - 1 + over))
        monkeypatch.setenv("KDFLOW_RUNTIME", str(root))
        finding = places.runtime_folder()
        assert finding.fits is (not over)
        if over:
            assert "shorter one" in finding.advice
            return
        job = root / "lab-12345678" / "job9999-12345678"
        job.mkdir(mode=0o700, parents=True)
        job.parent.chmod(0o700)
        listen(str(job / "rendezvous.sock"), backlog=1).close()


def test_a_disk_without_room(tmp_path: Path) -> None:
    finding = places.disk(tmp_path / "runs-to-come", 1e15, 2)
    assert not finding.fits
    assert "keep_last" in finding.advice
    assert "3 checkpoints" in finding.found


@pytest.mark.parametrize(
    ("mebibytes", "backend", "fits", "advice"),
    [
        (64, "sglang", True, "--shm-size=256m"),
        (1, "sglang", False, "--shm-size=256m"),
        (1, "transformers", True, ""),
        (1024, "sglang", True, ""),
    ],
)
def test_shared_memory_counts_where_sglang_needs_it(
    mebibytes: int, backend: str, fits: bool, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = namedtuple("status", "f_bavail f_frsize")(mebibytes, places.MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    finding = places.shared_memory(backend)
    assert finding.fits is fits
    assert (advice in finding.advice) if advice else fits


def test_cores_that_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert places.cores(_lab(), on_gpu=False).advice == ""
    many = places.cores(_lab(students=4), on_gpu=False)
    assert not many.fits
    assert "students=1" in many.advice
    assert "threads" in places.cores(_lab(threads=4), on_gpu=False).advice
    assert places.cores(_lab(students=4), on_gpu=True).fits
