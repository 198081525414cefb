"""The shell's `kdflow`: exit codes, what goes to which stream, and the lab it makes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FAILED, FINISHED, RUNNING, FakeFigure, running, steps, write_run
from inspections import random_inspection, write_probes

from kdflow_lab import cli
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ClusterError
from kdflow_lab.lab import Lab
from kdflow_lab.run import Run
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.widgets.divergence import DivergenceLens

Capture = pytest.CaptureFixture[str]
LAB = ("--teacher", "org/t", "--student", "org/s")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDFLOW_RUNS", str(tmp_path))


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch) -> list[Lab]:
    """Labs that were closed, as each command's lab must be."""
    closed: list[Lab] = []
    monkeypatch.setattr(Lab, "close", lambda self: closed.append(self))
    return closed


def _distill(monkeypatch: pytest.MonkeyPatch, events: Any = FINISHED) -> list[dict[str, Any]]:
    """Let `Lab.distill` write a run with these events; return the options it will get."""
    seen: list[dict[str, Any]] = []

    def distill(self: Lab, **options: Any) -> Run:
        DistillConfig.parse(**options)
        seen.append(options)
        return write_run(self.dir / "a", events, steps(10))

    monkeypatch.setattr(Lab, "distill", distill)
    return seen


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_help_lists_the_commands(words: list[str], capsys: Capture) -> None:
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "kdflow distill    Train the student" in out
    assert "%" not in out
    assert err == ""


@pytest.mark.parametrize("words", [["help", "set"], ["set", "--help"], ["set", "x", "-h"]])
def test_help_of_a_command(words: list[str], capsys: Capture) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith("kdflow set [RUN] [OPTIONS]\n")


def test_help_of_distill_has_the_labs_options_too(capsys: Capture) -> None:
    assert cli.main(["distill", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--lr ", "--teacher ", "--students ", "--export "))


# -- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distil", "kdflow has no command 'distil'. Did you mean 'distill'?"),
        ("stop --dirr x", "kdflow stop has no option 'dirr'. Did you mean 'dir'?"),
        ("up", "kdflow up is for notebooks."),
        ("down", "There is no lab to close. In a shell a lab lives as long as its command"),
        ("distill", "Say --teacher and --student, such as --teacher zoo/teacher."),
        ("distill --teacher org/t", "Say --student, such as"),
        ("distill --teacher org/t --student org/s --lr -1", "Option 'lr' = -1 cannot be used"),
        ("distill --teacher org/t --student org/s --students 0", "Option 'students' = 0"),
        ("export", "kdflow export needs a folder: export [RUN[@STEP]] PATH."),
        ("plot", "kdflow plot needs --save FILE: a shell shows no figure."),
        ("help distil", "Did you mean 'distill'?"),
        ("inspect --text x", "Say --teacher and --student"),
        ("inspect --text x --teacher org/t", "Say --student"),
        ("inspect --top 5", "--top goes with --text"),
    ],
)
def test_what_is_not_understood_ends_with_2(
    line: str, words: str, capsys: Capture, labs: list[Lab]
) -> None:
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kdflow: ") and err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("line", ["stop nothing", "status nothing", "export nothing out"])
def test_missing_run_ends_with_1(line: str, tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "nothin")
    assert cli.main(line.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "kdflow: There is no run 'nothing' in" in err
    assert "Did you mean 'nothin'?" in err


def test_interrupt_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main(["runs"]) == 1
    assert capsys.readouterr().err == "kdflow: interrupted\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_no_traceback(unbuffered: str) -> None:
    """`kdflow help | true`: nobody reads, and nothing is said about it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kdflow_lab.cli", "help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdflow_lab.cli"]
    done = [
        subprocess.run([*command, *words], capture_output=True, check=False).returncode
        for words in (["help"], ["stop"], ["distil"])
    ]
    assert done == [0, 1, 2]


# -- runs -----------------------------------------------------------------------------------------


def test_runs_is_a_table(tmp_path: Path, capsys: Capture) -> None:
    for age, name, events in (
        (2, "done", FINISHED),
        (1, "broken", FAILED),
        (0, "new", RUNNING[:1]),
    ):
        write_run(tmp_path / name, events, steps(10) if name == "done" else ())
        os.utime(tmp_path / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    assert cli.main(["runs"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["RUN", "STATE", "STEP", "LOSS", "STARTED", "FROM"]
    assert [line[:3] for line in lines[1:]] == [
        ["done", "finished", "10/10"],
        ["broken", "failed", "0/10"],
        ["new", "starting", "0/?"],
    ]
    assert lines[1][3] == "0.1"


def test_runs_say_where_a_fork_began_and_how_often_a_run_was_started(
    tmp_path: Path, capsys: Capture
) -> None:
    write_run(tmp_path / "base", (*FAILED, ("starting", {}), *FINISHED[1:]), steps(10))
    write_run(tmp_path / "fork", config={"parent": {"run": str(tmp_path / "base"), "step": 4}})
    assert cli.main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "finished (2 attempts)" in out
    assert "4/10" in out and out.splitlines()[2].endswith("base@4")


def test_runs_of_another_folder(tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "elsewhere" / "mine")
    assert cli.main(["runs", "--dir", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("mine ")


def test_status_is_the_summary_and_the_path(tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "a", FAILED, steps(3))
    assert cli.main(["status", "a"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("a: failed · step 3/10 · loss 0.3333")
    assert first.endswith("the loss is not a number.")
    assert second == str(tmp_path / "a")


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_command_reaches_the_run(command: str, tmp_path: Path, capsys: Capture) -> None:
    with running(tmp_path / "a") as run:
        assert cli.main([command]) == 0
        assert json.loads((run.path / "control.jsonl").read_text())["command"] == command
    assert capsys.readouterr().out.startswith(f"a: {command} asked for")


def test_set_reaches_the_run(tmp_path: Path, capsys: Capture) -> None:
    with running(tmp_path / "a") as run:
        assert cli.main(["set", "a", "lr=1e-4", "--loss", "rkl"]) == 0
        line = json.loads((run.path / "control.jsonl").read_text())
    assert line["changes"] == {"lr": 1e-4, "loss": "reverse_kl", "loss_params": {}}
    assert capsys.readouterr().out == "a: lr = 0.0001, loss = rkl from the next step on.\n"


def test_set_refuses_what_cannot_be_set(tmp_path: Path, capsys: Capture) -> None:
    with running(tmp_path / "a"):
        assert cli.main(["set", "a", "kd_ration=1"]) == 2
        assert "Did you mean 'kd_ratio'?" in capsys.readouterr().err
        assert cli.main(["set", "a"]) == 2
        assert "Nothing to set" in capsys.readouterr().err


def test_ended_run_refuses_a_command(tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "a")
    assert cli.main(["stop"]) == 1
    assert capsys.readouterr().err == "kdflow: Cannot stop a: it is finished already.\n"


def test_export_of_a_run_without_a_checkpoint_fails(tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "a", FAILED)
    assert cli.main(["export", "a", str(tmp_path / "out")]) == 1
    assert "a has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_takes_one_word_for_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: list[tuple[str, str, int | None]] = []
    adapters: list[bool] = []

    def export(self: Run, path: str, *, step: int | None = None, adapter: bool = False) -> Path:
        seen.append((self.name, path, step))
        adapters.append(adapter)
        return Path(path)

    monkeypatch.setattr(Run, "export", export)
    write_run(tmp_path / "a")
    assert cli.main(["export", "out"]) == 0
    assert cli.main(["export", "a", "out2"]) == 0
    assert cli.main(["export", "a@20", "out3", "--adapter"]) == 0
    assert seen == [("a", "out", None), ("a", "out2", None), ("a", "out3", 20)]
    assert adapters == [False, False, True]
    assert capsys.readouterr().out == "out\nout2\nout3\n"


def test_plot_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(Run, "plot", lambda self: FakeFigure(self))
    write_run(tmp_path / "a")
    assert cli.main(["plot", "a", "--save", str(tmp_path / "a.svg")]) == 0
    assert capsys.readouterr().out == f"Written: {tmp_path / 'a.svg'}\n"


# -- a lab for one command ------------------------------------------------------------------------


def test_distill_makes_a_lab_waits_and_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, labs: list[Lab]
) -> None:
    seen = _distill(monkeypatch)
    words = ["distill", *LAB, "--students", "2", "--lr", "1e-4", "steps=10", "--dir"]
    assert cli.main([*words, str(tmp_path / "mine")]) == 0
    assert seen == [{"lr": 1e-4, "steps": 10}]
    (lab,) = labs
    assert (lab.config.students, lab.dir) == (2, tmp_path / "mine")
    out, err = capsys.readouterr()
    path = tmp_path / "mine" / "a"
    assert out == f"run     {path}\nexport  not asked for: kdflow export {path} FOLDER\n"
    assert "10/10" in err


def test_export_of_distill_happens_after_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, labs: list[Lab]
) -> None:
    _distill(monkeypatch)
    monkeypatch.setattr(Run, "export", lambda self, path: f"{self.state} {path}")
    assert cli.main(["distill", *LAB, "--export", "out"]) == 0
    assert capsys.readouterr().out.endswith("export  finished out\n")


def test_failed_run_ends_with_1_and_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, labs: list[Lab]
) -> None:
    _distill(monkeypatch, FAILED)
    assert cli.main(["distill", *LAB]) == 1
    assert "kdflow: a failed: the loss is not a number. " in capsys.readouterr().err
    assert len(labs) == 1


def test_engines_that_do_not_start_end_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, labs: list[Lab]
) -> None:
    def evaluate(self: Lab, **_: object) -> None:
        raise ClusterError("The engines did not start.")

    monkeypatch.setattr(Lab, "evaluate", evaluate)
    assert cli.main(["eval", *LAB]) == 1
    assert capsys.readouterr().err == "kdflow: The engines did not start.\n"
    assert len(labs) == 1


def test_first_interrupt_stops_the_run_and_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with running(tmp_path / "a") as run:

        def interrupt(seconds: float) -> None:
            monkeypatch.undo()
            RunDirectory(run.path).event("stopped", step=3)  # as rank 0 does when it is told
            raise KeyboardInterrupt

        monkeypatch.setattr("kdflow_lab.cli.time.sleep", interrupt)
        stops: list[str] = []
        monkeypatch.setattr(Run, "stop", lambda self: stops.append(self.name))
        cli._follow(cli.ShellSession(), run, None)
    err = capsys.readouterr().err
    assert "Stopping before the next step; the weights are kept. Ctrl-C again gives them up" in err


def test_second_interrupt_gives_the_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labs: list[Lab], capsys: Capture
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with running(tmp_path / "a") as run:
        monkeypatch.setattr("kdflow_lab.cli.time.sleep", interrupt)
        monkeypatch.setattr(Lab, "distill", lambda self, **options: run)
        assert cli.main(["distill", *LAB]) == 1
        assert json.loads((run.path / "control.jsonl").read_text())["command"] == "stop"
    assert "kdflow: Gave a up at step 3." in capsys.readouterr().err
    assert len(labs) == 1


@pytest.mark.parametrize(
    ("line", "step", "changes"),
    [
        (["fork", "a", "--loss", "rkl", "--lr", "1e-4"], None, {"loss": "rkl", "lr": 1e-4}),
        (["fork", "a@40", "--students", "2"], 40, {}),
        (["fork", "a", "--step", "60"], 60, {}),
        (["fork"], None, {}),
    ],
)
def test_fork_reaches_a_lab_of_the_runs_models(
    line: list[str],
    step: int | None,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labs: list[Lab],
) -> None:
    write_run(tmp_path / "a", config={"lab": {"teacher": "org/t", "student": "org/s"}})
    seen: list[Any] = []

    def fork(self: Lab, run: Run, *, step: int | None = None, **changes: Any) -> Run:
        seen.append((self.config.teacher, run.name, step, changes))
        return write_run(tmp_path / "a-fork1")

    monkeypatch.setattr(Lab, "fork", fork)
    assert cli.main(line) == 0
    assert seen == [("org/t", "a", step, changes)]


def test_resume_of_an_ended_run_is_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labs: list[Lab], capsys: Capture
) -> None:
    write_run(tmp_path / "a", FAILED, config={"lab": {"teacher": "org/t", "student": "org/s"}})
    seen: list[Any] = []

    def resume(self: Lab, run: Run, **changes: Any) -> Run:
        seen.append((run.name, changes))
        run.directory.event("finished", step=10)
        return run

    monkeypatch.setattr(Lab, "resume", resume)
    assert cli.main(["resume", "a", "--lr", "1e-4"]) == 0
    assert seen == [("a", {"lr": 1e-4})]
    assert str(tmp_path / "a") in capsys.readouterr().out


def test_compare_of_a_fork_takes_its_parent(tmp_path: Path, capsys: Capture) -> None:
    write_run(tmp_path / "base", FINISHED, steps(10))
    assert cli.main(["compare"]) == 2
    assert "needs two runs" in capsys.readouterr().err
    write_run(tmp_path / "fork", config={"parent": {"run": str(tmp_path / "base"), "step": 4}})
    os.utime(tmp_path / "base" / "config.yaml", (1_000_000, 1_000_000))
    assert cli.main(["compare", "--save", str(tmp_path / "both.svg")]) == 0
    out = capsys.readouterr().out
    assert "base" in out and "fork" in out
    assert (tmp_path / "both.svg").read_text().startswith("<svg")


def test_attach_without_a_living_lab_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("KDFLOW_RUNTIME", str(tmp_path / "runtime"))
    assert cli.main(["attach"]) == 1
    assert "No lab of this user is living" in capsys.readouterr().err


def test_eval_of_a_run_takes_its_models_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labs: list[Lab]
) -> None:
    """`--dir` is the folder of the run as well as of the lab."""
    lab = {"teacher": "org/t", "student": "org/s", "students": 3}
    write_run(tmp_path / "far" / "a", config={"lab": lab})
    seen: list[Any] = []

    @functools.wraps(Lab.evaluate)  # its signature gives the command's options
    def evaluate(self: Lab, **options: Any) -> None:
        seen.append(options)

    monkeypatch.setattr(Lab, "evaluate", evaluate)
    assert cli.main(["eval", "a", "--dir", str(tmp_path / "far"), "--rows", "5"]) == 0
    assert seen[0]["model"].path == tmp_path / "far" / "a"
    assert seen[0]["rows"] == 5
    assert labs[0].config.students == 3
    assert cli.main(["eval", "a", "--dir", str(tmp_path / "far"), "--students", "1"]) == 0
    assert labs[1].config.students == 1


# -- inspect --------------------------------------------------------------------------------------


def test_inspect_prints_the_newest_probes_of_a_run(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "a", FINISHED)
    for step in (0, 30):
        write_probes(run.path, step)
    assert cli.main(["inspect", "a"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("a at step 30: forward KL [nats] of 12 tokens in 2 texts")
    assert "student expected" in out and "\x1b" not in out and err == ""
    assert cli.main(["inspect", "a@0", "--by", "rank"]) == 0
    assert capsys.readouterr().out.startswith("a at step 0: student's rank of the token")
    # what would load a widget, or start a lab, is not even imported
    code = (
        "import sys; from kdflow_lab import cli; cli.main(['inspect', 'a']); "
        "print([one for one in ('torch', 'anywidget', 'kdflow_lab.lab') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_inspect_says_what_is_missing(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "a", FINISHED)
    assert cli.main(["inspect", "a"]) == 1
    assert "a has ended without probes" in capsys.readouterr().err
    write_probes(run.path, 10)
    assert cli.main(["inspect", "a@7"]) == 1
    assert "There are: 10" in capsys.readouterr().err
    assert cli.main(["inspect", "a", "--by", "ranks"]) == 2
    assert "Did you mean 'rank'" in capsys.readouterr().err
    assert cli.main(["inspect", "a@10", "--text", "x", *LAB]) == 2
    assert "leave @STEP out" in capsys.readouterr().err


def test_inspect_asks_a_run_that_trains(tmp_path: Path, capsys: Capture) -> None:
    with running(tmp_path / "a") as run:
        assert cli.main(["inspect", "a"]) == 0
        assert capsys.readouterr().out == (
            "a: asked for new probes; they come before its next step.\n"
        )
        (command,) = (run.path / "control.jsonl").read_text().splitlines()
        assert json.loads(command)["command"] == "inspect"


def test_inspect_of_a_text_uses_the_labs_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, labs: list[Lab]
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def inspect(self: Lab, texts: Any, **options: Any) -> DivergenceLens:
        asked.append((texts, options))
        return DivergenceLens(random_inspection(), quantity=options.get("quantity"))

    monkeypatch.setattr(Lab, "inspect", inspect)
    words = ["inspect", "--text", "It is 4.", "--top", "7", "--by", "jsd"]
    assert cli.main([*words, *LAB]) == 0
    assert "Jensen-Shannon divergence" in capsys.readouterr().out
    assert asked == [(["It is 4."], {"quantity": "jsd", "top": 7})]
    assert len(labs) == 1, "the lab of the command is closed"
    run = write_run(tmp_path / "a", FINISHED, config={"lab": {"teacher": "o/t", "student": "o/s"}})
    assert cli.main(["inspect", "a", "--text", "x"]) == 0
    assert asked[1][1]["model"].path == run.path
