"""Living labs are found by files that only their user may read; dead ones are cleared away."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab import processes, runtime
from kdflow_lab.errors import ClusterError

SUPERVISOR = """
import json, sys
from pathlib import Path
from kdflow_lab import runtime
runtime.write_record(Path(sys.argv[1]), json.loads(sys.argv[2]), "1.0")
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's labs are."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv("KDFLOW_RUNTIME", str(folder))
    return folder


@contextmanager
def _lab(dir: str = "runs", **config: Any) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder of a lab whose supervisor is a real process that does nothing."""
    folder = runtime.new_folder()
    fields = {"teacher": "zoo/teacher", "student": "zoo/student", "dir": dir, **config}
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder), json.dumps(fields)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, processes.MARKER: str(folder)},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield folder, process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder, (then, then))


# -- private --------------------------------------------------------------------------------------


def test_folders_and_files_are_the_users_alone(root: Path) -> None:
    mask = os.umask(0)
    try:
        folder = runtime.new_folder()
        runtime.write_record(folder, {}, "1.0")
        runtime.write_private(folder / "other", "first")
        runtime.write_private(folder / "other", "second")
    finally:
        os.umask(mask)
    assert (_mode(root), _mode(folder)) == (0o700, 0o700)
    assert {_mode(file) for file in folder.iterdir()} == {0o600}
    assert (folder / "other").read_text() == "second"
    assert {file.name for file in folder.iterdir()} == {runtime.RECORD, "other"}


def test_default_root_is_named_after_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDFLOW_RUNTIME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert runtime.root() == tmp_path / f"kdflow-{os.getuid()}"


def test_root_that_others_may_enter_is_refused(root: Path) -> None:
    root.mkdir(mode=0o755)
    with pytest.raises(ClusterError, match=r"is not this user's alone.*KDFLOW_RUNTIME"):
        runtime.root()
    root.chmod(0o700)
    assert runtime.root() == root


def test_link_to_a_private_folder_is_refused(root: Path, tmp_path: Path) -> None:
    """Whoever made the link could point it elsewhere later."""
    (tmp_path / "mine").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "mine")
    with pytest.raises(ClusterError, match="is not this user's alone"):
        runtime.root()


def test_root_of_somebody_else_is_refused(root: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to somebody else")
    root.mkdir(mode=0o700)
    os.chown(root, 12345, 12345)
    with pytest.raises(ClusterError, match="is not this user's alone"):
        runtime.root()


def test_root_that_cannot_be_made_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDFLOW_RUNTIME", str(tmp_path / "file" / "labs"))
    with pytest.raises(ClusterError, match=r"cannot be made: Not a directory.*KDFLOW_RUNTIME"):
        runtime.root()


def test_root_is_the_same_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDFLOW_RUNTIME", "labs")
    monkeypatch.chdir(tmp_path)
    assert runtime.root() == tmp_path / "labs"
    assert runtime.new_folder().parent == tmp_path / "labs"


# -- living and dead ------------------------------------------------------------------------------


def test_lab_lives_as_long_as_its_supervisor() -> None:
    with _lab() as (folder, process):
        (record,) = runtime.living()
        assert (record.folder, record.pid, record.version) == (folder, process.pid, "1.0")
        assert record.name == folder.name
        assert record.socket == str(folder / "lab.sock")
        assert str(record).startswith(f"{folder.name}  zoo/teacher -> zoo/student  since ")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert runtime.read_record(folder) is None
        assert runtime.living() == []
        assert folder.exists()  # its guardian is about to clear up


def test_number_of_a_dead_supervisor_that_another_process_has_is_no_lab() -> None:
    folder = runtime.new_folder()
    runtime.write_record(folder, {}, "1.0")
    assert runtime.read_record(folder) is not None
    file = folder / runtime.RECORD
    file.write_text(json.dumps({**json.loads(file.read_text()), "born": 1}))
    assert runtime.read_record(folder) is None


@pytest.mark.parametrize("text", ["", "torn {", "[]", "{}", '{"pid": 1}', '"text"'])
def test_record_that_is_none_is_left_out(text: str) -> None:
    folder = runtime.new_folder()
    (folder / runtime.RECORD).write_text(text)
    assert runtime.living() == []


def test_what_a_dead_lab_left_is_ended_and_removed() -> None:
    young, old = runtime.new_folder(), runtime.new_folder()
    (old / "something").write_text("")
    left = subprocess.Popen(["sleep", "600"], env={**os.environ, processes.MARKER: str(old)})
    _age(old, runtime.STALE_S + 60)
    assert runtime.living() == []
    assert left.wait(60) == -signal.SIGKILL
    assert young.exists() and not old.exists()  # the young one may be just starting


def test_old_folder_of_a_living_lab_stays() -> None:
    with _lab() as (folder, _):
        _age(folder, runtime.STALE_S + 60)
        assert [lab.folder for lab in runtime.living()] == [folder]


def test_labs_are_listed_oldest_first() -> None:
    with ExitStack() as labs:
        folders = [labs.enter_context(_lab())[0] for _ in range(3)]
        assert [lab.folder for lab in runtime.living()] == folders


# -- finding --------------------------------------------------------------------------------------


def test_no_lab_is_said_to_be_none() -> None:
    for where in (None, "lab-x"):
        with pytest.raises(ClusterError, match=r"No lab of this user is living.*lab\.up\(\)"):
            runtime.find(where)


def test_only_lab_needs_no_name() -> None:
    with _lab() as (folder, _):
        assert runtime.find(None).folder == folder
        assert runtime.find(folder.name).folder == folder


def test_lab_is_found_by_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with _lab(dir=str(here)) as (mine, _), _lab(dir=str(there)) as (other, _):
        assert runtime.find(here).folder == mine
        assert runtime.find(there / "a-run").folder == other
        monkeypatch.chdir(tmp_path)
        assert runtime.find("here").folder == mine
        assert runtime.find("here/a-run").folder == mine


def test_several_labs_are_listed() -> None:
    with _lab(dir="/runs") as (first, _), _lab(dir="/runs") as (second, _):
        for where, words in ((None, "There are 2 living labs"), ("/runs", "2 labs have their")):
            with pytest.raises(ClusterError, match=words) as raised:
                runtime.find(where)
            assert first.name in str(raised.value) and second.name in str(raised.value)


def test_unknown_lab_is_answered_with_the_nearest() -> None:
    with _lab() as (folder, _):
        with pytest.raises(ClusterError, match=f"Did you mean '{folder.name}'") as raised:
            runtime.find(f"{folder.name}x")
        assert "zoo/teacher -> zoo/student" in str(raised.value)
