"""The run directory: what is written is read back, also by others, also after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fakes import FAILED, FINISHED, RUNNING, Event, held, write_run
from small_disk import run_on_small_disk

from kdflow_lab import processes
from kdflow_lab.errors import RunError
from kdflow_lab.jsonl import JsonlTail
from kdflow_lab.rundir import RunDirectory, fail_runs, list_runs


def _dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- creating -------------------------------------------------------------------------------------


def test_config_is_read_back_with_its_schema(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "a")
    directory.create({"loss": "forward_kl", "betas": [0.9, 0.98], "name": "Überlauf"})
    assert directory.config() == {
        "schema": 1,
        "loss": "forward_kl",
        "betas": [0.9, 0.98],
        "name": "Überlauf",
    }
    assert "Überlauf" in directory.config_file.read_text(encoding="utf-8")  # for people, too


def test_same_name_twice_is_refused_and_keeps_the_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"loss": "first"})
    with pytest.raises(RunError, match=r"exists already\. Give the run another name"):
        RunDirectory(tmp_path / "a").create({"loss": "second"})
    assert RunDirectory(tmp_path / "a").config()["loss"] == "first"


def test_folder_that_cannot_be_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made: Not a directory\. Pass a writable folder"):
        RunDirectory(tmp_path / "file" / "a").create({})


@pytest.mark.parametrize("name", ["nothing", "file", "empty"])
def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is not a run directory"):
        RunDirectory(tmp_path / name).config()


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "runs" / "a")
    assert RunDirectory("~/runs/a").config()["loss"] == "forward_kl"
    assert [one.path.name for one in list_runs("~/runs")] == ["a"]


# -- lines ----------------------------------------------------------------------------------------


def test_events_metrics_and_commands_are_one_json_object_a_line(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("warning", message="line one\nline two", path=tmp_path)
    directory.metrics({"step": 1, "loss": 0.5})
    first = directory.command("set", changes={"lr": 0.1})
    second = directory.command("stop")
    lines = directory.events_file.read_text().splitlines()
    assert len(lines) == 1
    event = json.loads(lines[0])
    assert (event["event"], event["message"]) == ("warning", "line one\nline two")
    assert event["path"] == str(tmp_path)
    assert event["time"] > 0
    assert json.loads(directory.metrics_file.read_text()) == {"step": 1, "loss": 0.5}
    commands = [json.loads(line) for line in directory.control_file.read_text().splitlines()]
    assert [(one["id"], one["command"]) for one in commands] == [(first, "set"), (second, "stop")]
    assert commands[0]["changes"] == {"lr": 0.1}
    assert first != second


def test_tail_returns_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = JsonlTail(path)
    assert tail.read() == []  # not there yet
    path.write_bytes(b'{"a": 1}\n{"a": ')
    assert tail.read() == [{"a": 1}]
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b'2}\n{"a": 3}\n')
    assert tail.read() == [{"a": 2}, {"a": 3}]
    assert tail.read() == []


def test_tail_skips_what_a_dying_machine_tore(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2, "b\n\0\0\0\0\n\xff\xfe\n\n{"a": 3}\n')
    assert JsonlTail(path).read() == [{"a": 1}, {"a": 3}]


def test_tail_keeps_separators_inside_a_text(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    text = "a\u2028b\u0085c\rd\ve"
    directory.event("warning", message=text)
    assert [event["message"] for event in directory.events()] == [text]


_WRITER = """
import sys
from kdflow_lab.rundir import RunDirectory
directory = RunDirectory(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(500):
    directory.event("warning", writer=sys.argv[2], number=number, text=sys.argv[2] * 5000)
"""


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(directory.path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "xy"
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
    lines = directory.events_file.read_text().splitlines()
    events = [json.loads(line) for line in lines]  # raises at a mixed line
    for name in "xy":
        mine = [event for event in events if event["writer"] == name]
        assert [event["number"] for event in mine] == list(range(500))
        assert all(event["text"] == name * 5000 for event in mine)


def test_line_after_a_torn_one_is_read(tmp_path: Path) -> None:
    """A machine died while it wrote: what is written after that begins on a line of its own."""
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("starting")
    with directory.events_file.open("ab") as file:
        file.write(b'{"event": "checkpoint", "st')
    tail = JsonlTail(directory.events_file)
    assert [event["event"] for event in tail.read()] == ["starting"]
    directory.event("failed", reason="x")
    assert [event["event"] for event in tail.read()] == ["failed"]
    directory.event("warning")
    assert [event["event"] for event in directory.events()] == ["starting", "failed", "warning"]


FULL_DISK = """
import os, sys
from pathlib import Path
from kdflow_lab.errors import RunError
from kdflow_lab.rundir import RESERVE_BYTES, RunDirectory

root = Path(sys.argv[1])
directory = RunDirectory(root / "a")
directory.create({})
directory.lock()
directory.event("starting")
reserve = directory.path / ".reserve"
assert os.stat(reserve).st_blocks * 512 >= RESERVE_BYTES  # room, not a hole
with (root / "others").open("wb", buffering=0) as others:
    try:
        while True:
            others.write(bytes(4096))
    except OSError:
        pass
for kind in ("metrics", "event"):
    try:
        if kind == "event":
            directory.event("warning", text="x" * 9000)
        else:
            directory.metrics({"step": 1, "text": "x" * 9000})
    except RunError as error:
        print(error)
kept = directory.events_file.read_bytes()
assert kept.endswith(b"\\n") and b"xxx" not in kept  # half a line is taken back
directory.event("failed", reason="y" * 5000)
assert not reserve.exists()
print([event["event"] for event in directory.events()], directory.state())
os.remove(root / "others")
directory.event("warning")
print([event["event"] for event in directory.events()])
"""


def test_full_disk_is_said_and_leaves_room_for_the_last_word(tmp_path: Path) -> None:
    said = run_on_small_disk(FULL_DISK, tmp_path / "disk", kib=256).splitlines()
    assert len(said) == 4
    for line, file in zip(said[:2], ("metrics", "events"), strict=True):
        assert f"{file}.jsonl cannot be written: No space left on device" in line
        assert "Free some space" in line
    assert said[2] == "['starting', 'failed'] failed"
    assert said[3] == "['starting', 'failed', 'warning']"


def test_reserve_goes_with_the_lock(tmp_path: Path) -> None:
    directory = RunDirectory(write_run(tmp_path / "a").path)
    directory.lock()
    assert (directory.path / ".reserve").stat().st_size > 0
    directory.unlock()
    assert not (directory.path / ".reserve").exists()


# -- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), "starting"),
        (RUNNING[:1], "starting"),
        ((*RUNNING[:1], ("phase", {"text": "reading the data"})), "starting"),
        (RUNNING, "running"),
        ((*RUNNING, ("warning", {"message": "x"})), "running"),
        ((*RUNNING, ("paused", {})), "paused"),
        ((*RUNNING, ("paused", {}), ("set", {"changes": {"lr": 1}})), "paused"),
        ((*RUNNING, ("paused", {}), ("resumed", {})), "running"),
        ((*RUNNING, ("stopping", {})), "stopping"),
        ((*RUNNING, ("stopping", {}), ("checkpoint", {"step": 3})), "stopping"),
    ],
)
def test_state_of_a_run_that_holds_its_lock(
    tmp_path: Path, events: tuple[Event, ...], state: str
) -> None:
    run = write_run(tmp_path / "a", events)
    with held(run.path):
        assert run.state == state
    if state != "starting":
        assert run.state == "failed"  # it said so, and nobody holds the lock any more


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (FINISHED, "finished"),
        ((*RUNNING, ("stopping", {}), ("stopped", {})), "stopped"),
        (FAILED, "failed"),
    ],
)
def test_ended_run_needs_no_lock(tmp_path: Path, events: tuple[Event, ...], state: str) -> None:
    assert write_run(tmp_path / "a", events).state == state


def test_run_whose_process_is_killed_reads_as_failed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", RUNNING)
    with held(run.path) as process:
        assert run.state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run.state == "failed"
        assert run.reason == "Its process died without a word."


def test_starting_run_whose_kernel_died_reads_as_failed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("starting", pid=_dead_pid())
    assert directory.state() == "failed"


def test_starting_run_whose_engines_outlive_the_kernel_is_starting(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("starting", pid=_dead_pid())
    with held(directory.path):
        assert directory.state() == "starting"


def test_end_written_after_the_first_look_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that finishes between the look at its events and the look at its lock is no failure."""
    run = write_run(tmp_path / "a", RUNNING)

    def ends_now(self: RunDirectory) -> bool:
        self.event("finished", step=10)
        return False

    monkeypatch.setattr(RunDirectory, "locked", ends_now)
    assert run.state == "finished"


# -- attempts -------------------------------------------------------------------------------------


def test_attempts_have_outcomes_of_their_own(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    assert directory.attempts == 0 and directory.outcome(1) == ""
    for attempt, end in enumerate(("failed", "parked", "stopped", "finished"), 1):
        directory.begin(attempt)
        directory.event("started", attempt=attempt)
        assert directory.attempts == attempt and directory.outcome(attempt) == ""
        directory.event(end)
        directory.event("warning", message="said late")
        assert directory.outcome(attempt) == end
    assert [directory.outcome(attempt) for attempt in range(6)] == [
        "",
        "failed",
        "parked",
        "stopped",
        "finished",
        "",
    ]


def test_first_end_of_an_attempt_counts(tmp_path: Path) -> None:
    directory = RunDirectory(write_run(tmp_path / "a", (*FAILED, ("finished", {}))).path)
    assert directory.outcome(1) == "failed"


def test_attempt_begins_behind_the_commands_given_before(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.begin(1)
    directory.command("stop")
    directory.begin(2, by="me")
    directory.command("pause")
    first, second = directory.events()
    assert first["control_from"] == 0
    assert (second["attempt"], second["by"]) == (2, "me")
    tail = JsonlTail(directory.control_file, position=second["control_from"])
    assert [command["command"] for command in tail.read()] == ["pause"]


def test_parked_run_is_paused_and_needs_nobody(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", (*RUNNING, ("paused", {}), ("parked", {})))
    assert run.state == "paused" and run.parked
    assert run.directory.said() == "paused"
    run.directory.event("starting", pid=_dead_pid())
    assert run.state == "failed" and not run.parked


@pytest.fixture
def keeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a lab's supervisor."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("events", "state"),
    [((), "starting"), (RUNNING[1:], "running"), ((*RUNNING[1:], ("stopping", {})), "stopping")],
)
def test_queued_run_lives_as_long_as_its_supervisor(
    tmp_path: Path, keeper: subprocess.Popen[bytes], events: tuple[Event, ...], state: str
) -> None:
    """Its kernel is gone, and between two attempts nobody holds the lock."""
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("starting", pid=_dead_pid())
    directory.event("queued", pid=keeper.pid, born=processes.born(keeper.pid))
    for name, fields in events:
        directory.event(name, **fields)
    assert directory.state() == state
    keeper.kill()
    keeper.wait()
    assert directory.state() == "failed"


def test_supervisor_whose_number_another_process_has_is_dead(
    tmp_path: Path, keeper: subprocess.Popen[bytes]
) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("starting", pid=os.getpid())
    directory.event("queued", pid=keeper.pid, born=1)
    assert directory.state() == "failed"


def test_supervisor_of_an_earlier_attempt_keeps_no_later_one(
    tmp_path: Path, keeper: subprocess.Popen[bytes]
) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    directory.event("queued", pid=keeper.pid, born=processes.born(keeper.pid))
    directory.event("failed")
    directory.event("starting", pid=_dead_pid())
    directory.event("started")
    assert directory.state() == "failed"


def test_steps_asked_follow_the_newest_word(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({})
    assert directory.steps_asked() is None
    directory.event("started", steps=10)
    directory.event("set", changes={"lr": 0.1})
    assert directory.steps_asked() == 10
    directory.event("set", changes={"steps": 25})
    assert directory.steps_asked() == 25


def test_only_whole_folders_are_checkpoints(tmp_path: Path) -> None:
    directory = RunDirectory(write_run(tmp_path / "a").path)
    assert directory.checkpoint_steps() == []
    for name in ("10", "9", ".12.tmp", ".8.old", "best", "11x"):
        (directory.checkpoints / name).mkdir(parents=True)
        (directory.checkpoints / name / "state.json").write_text("{}")
    (directory.checkpoints / "13").mkdir()
    assert directory.checkpoint_steps() == [9, 10]


def test_runs_of_a_lab_that_ended_have_failed(tmp_path: Path) -> None:
    active = write_run(tmp_path / "active", RUNNING)
    paused = write_run(tmp_path / "paused", (*RUNNING, ("paused", {})))
    others = [
        write_run(tmp_path / "finished", FINISHED),
        write_run(tmp_path / "failed", FAILED),
        write_run(tmp_path / "parked", (*RUNNING, ("paused", {}), ("parked", {}))),
    ]
    before = [run.events for run in others]
    paths = [str(run.path) for run in (*others, active, paused)]
    fail_runs([str(tmp_path / "removed"), *paths], "The lab ended.")
    assert [run.events for run in others] == before
    for run in (active, paused):
        assert (run.state, run.reason) == ("failed", "The lab ended.")
    assert not (tmp_path / "removed").exists()


def test_runs_of_a_lab_that_lost_an_engine_say_which(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", RUNNING)
    fail_runs([str(run.path)], "It died.", lost=["teacher"])
    assert [event["event"] for event in run.events[-2:]] == ["worker_lost", "failed"]
    assert run.events[-2]["roles"] == ["teacher"]


# -- lock -----------------------------------------------------------------------------------------


def test_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a").path
    directory = RunDirectory(path)
    assert not directory.locked()
    with held(path):
        assert directory.locked()
        with pytest.raises(RunError, match="another process is training in it"):
            directory.lock()
    directory.lock()
    assert RunDirectory(path).locked()
    with pytest.raises(RunError, match="is locked"):
        RunDirectory(path).lock()
    directory.unlock()
    assert not directory.locked()
    directory.unlock()  # twice is no error


def test_looking_at_the_lock_does_not_give_it_free(tmp_path: Path) -> None:
    """POSIX locks would: closing any descriptor of the file drops them."""
    directory = RunDirectory(write_run(tmp_path / "a").path)
    directory.lock()
    try:
        for _ in range(2):
            assert directory.locked()
        code = "import sys; from kdflow_lab.rundir import RunDirectory as R\n"
        code += "print(R(sys.argv[1]).locked())"
        seen = subprocess.run(
            [sys.executable, "-c", code, str(directory.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert seen.stdout == "True\n"
    finally:
        directory.unlock()


def test_kill_frees_the_lock(tmp_path: Path) -> None:
    directory = RunDirectory(write_run(tmp_path / "a").path)
    with held(directory.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not directory.locked()
        directory.lock()
        directory.unlock()


# -- listing --------------------------------------------------------------------------------------


def test_runs_are_listed_oldest_first_and_nothing_else_is(tmp_path: Path) -> None:
    for age, name in ((30, "b"), (10, "a"), (20, "c")):
        write_run(tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert [one.path.name for one in list_runs(tmp_path)] == ["b", "c", "a"]
    assert list(list_runs(tmp_path / "nothing")) == []


def test_files_are_plain_yaml_and_json_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FINISHED, [{"step": 1, "loss": 0.5}])
    assert yaml.safe_load((run.path / "config.yaml").read_text())["schema"] == 1
    names = {path.name for path in run.path.iterdir()}
    assert names == {"config.yaml", "events.jsonl", "metrics.jsonl"}
