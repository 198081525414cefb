"""Signs of life: an engine that is stopped or gone without a word is named, a busy one is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdflow_lab.beats import BEAT_S, Beats, silent

ROLES = ("student 0", "student 1", "teacher")
QUIET_S = 4 * BEAT_S
ENGINE = """
import sys
from pathlib import Path
from kdflow_lab.beats import Beats
with Beats(Path(sys.argv[1]), sys.argv[2]) as beats:
    beats.at("in step 7")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Two students that beat; the teacher has not begun."""
    started = {}
    for role in ROLES[:2]:
        started[role] = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(tmp_path), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    for process in started.values():
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _silent(folder: Path) -> list[str]:
    return silent(folder, ROLES, seconds=QUIET_S)


def test_stopped_process_is_named_and_no_other(
    tmp_path: Path, engines: dict[str, subprocess.Popen[str]]
) -> None:
    assert _silent(tmp_path) == []
    engines["student 1"].send_signal(signal.SIGSTOP)
    _until(lambda: _silent(tmp_path) == ["student 1"])
    engines["student 1"].send_signal(signal.SIGCONT)
    _until(lambda: _silent(tmp_path) == [])


def test_process_that_died_without_a_word_is_named_and_one_that_left_is_not(
    tmp_path: Path, engines: dict[str, subprocess.Popen[str]]
) -> None:
    engines["student 0"].kill()
    engines["student 1"].communicate()  # it leaves in good order
    _until(lambda: _silent(tmp_path) == ["student 0"])
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["beat-student-0"]


def test_who_waits_in_vain_says_where_the_others_are(
    tmp_path: Path, engines: dict[str, subprocess.Popen[str]]
) -> None:
    with Beats(tmp_path, "student 2") as beats:
        beats.at("writing the checkpoint of step 3")
        assert beats.where((*ROLES, "student 2")) == (
            f"student 0 (pid {engines['student 0'].pid}) in step 7; "
            f"student 1 (pid {engines['student 1'].pid}) in step 7; "
            "teacher has left; "
            f"student 2 (pid {os.getpid()}) writing the checkpoint of step 3"
        )


def test_process_that_computes_without_a_pause_beats(tmp_path: Path) -> None:
    """Its thread gets its turn though the main thread never waits."""
    with Beats(tmp_path, "student 0"):
        end = time.monotonic() + 2 * QUIET_S
        while time.monotonic() < end:
            sum(range(10_000))
        assert _silent(tmp_path) == []


def test_folder_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    with Beats(folder, "student 0") as beats:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        beats.at("in step 2")
        time.sleep(2 * BEAT_S)
        assert _silent(folder) == []
    assert not folder.exists()
