"""Where a run stands, in numbers and as a line in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FAILED, FINISHED, RUNNING, running, steps, write_run

from kdflow_lab.bars import make_bar
from kdflow_lab.progress import RunProgress, clock, job_progress, phases, summary


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (36061, "10:01:01")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_summary_of_a_running_run_estimates_the_rest(tmp_path: Path) -> None:
    with running(tmp_path / "a", count=4) as run:
        now = summary(run)
    assert (now.name, now.state, now.step, now.steps) == ("a", "running", 4, 10)
    assert (now.loss, now.tokens_per_s, now.remaining_s) == (0.25, 100.0, 12.0)
    assert not now.ended
    assert "a: running · step 4/10 · loss 0.25 · 100 tokens/s · " in str(now)
    assert str(now).endswith("0:12 left")


def test_summary_estimates_from_the_last_steps_only(tmp_path: Path) -> None:
    slow_start = [{"step": step, "loss": 1.0, "step_s": 100.0} for step in range(1, 11)]
    rest = [{"step": step, "loss": 1.0, "step_s": 1.0} for step in range(11, 61)]
    run = write_run(tmp_path / "a", (("starting", {}), ("started", {"steps": 70})))
    for record in (*slow_start, *rest):
        run.directory.metrics(record)
    run.directory.lock()
    assert summary(run).remaining_s == 10.0
    run.directory.unlock()


def test_summary_of_a_starting_run_says_its_phase_and_no_total(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", (*RUNNING[:1], ("phase", {"text": "loading the teacher"})))
    now = summary(run)
    assert (now.state, now.step, now.steps, now.loss) == ("starting", 0, None, None)
    assert now.phase == "loading the teacher"
    assert str(now).startswith("a: starting · step 0 · loading the teacher · 0:0")
    assert now.remaining_s is None


def test_phase_is_over_when_the_run_runs(tmp_path: Path) -> None:
    events = (RUNNING[0], ("phase", {"text": "reading the data"}), RUNNING[1])
    with running(tmp_path / "a", events=events) as run:
        assert summary(run).phase == ""


def test_paused_run_has_no_time_left(tmp_path: Path) -> None:
    with running(tmp_path / "a", events=(*RUNNING, ("paused", {}))) as run:
        now = summary(run)
        assert (now.state, now.remaining_s) == ("paused", None)


def test_ended_run_took_the_time_between_its_first_and_last_event(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FINISHED, steps(10))
    now = summary(run)
    first, *_, last = run.events
    assert now.ended
    assert now.elapsed_s == last["time"] - first["time"]
    assert now.remaining_s is None
    assert (now.step, now.steps) == (10, 10)


def test_failed_run_says_why_in_its_summary(tmp_path: Path) -> None:
    events = (*FAILED[:2], ("warning", {"message": "rows are padded"}), FAILED[2])
    assert summary(write_run(tmp_path / "a", events)).note == "the loss is not a number."
    assert str(summary(write_run(tmp_path / "b", RUNNING))).endswith(
        " · Its process died without a word."
    )


def test_newest_warning_is_the_note_of_a_run_that_goes_on(tmp_path: Path) -> None:
    warnings = tuple(("warning", {"message": text}) for text in ("first", "second"))
    with running(tmp_path / "a", events=(*RUNNING, *warnings)) as run:
        assert summary(run).note == "second"


@pytest.mark.parametrize("loss", [None, 0.5])
def test_loss_that_was_no_number_is_left_out(tmp_path: Path, loss: Any) -> None:
    run = write_run(tmp_path / "a", FINISHED, steps(2, loss=loss))
    assert ("loss" in summary(run).figures) == (loss is not None)


def test_run_progress_draws_a_bar_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a", FINISHED, steps(10))
    with RunProgress(run) as bar:
        assert bar.update() is True
    output = capsys.readouterr()
    assert output.out == ""
    line = output.err.rstrip("\n").rpartition("\r")[2]
    assert line.startswith("a (finished) 100%|")
    assert "| 10/10" in line and "loss 0.1 · 100 tokens/s" in line


def test_run_progress_of_a_starting_run_shows_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a", (*RUNNING[:1], ("phase", {"text": "loading the teacher"})))
    with RunProgress(run) as bar:
        assert bar.update() is False
    line = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
    assert line.startswith("a: starting · loading the teacher · ")
    assert "%" not in line


def test_job_progress_ends_with_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with job_progress("evaluating: student") as report:
        report(0, 0)
        report(2, 4)
        report(4, 4)
    line = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
    assert line.startswith("evaluating: student 100%|")
    assert "| 4/4" in line and "left" not in line


def test_job_progress_without_parts_shows_words(capsys: pytest.CaptureFixture[str]) -> None:
    with job_progress("answering: teacher"):
        pass
    assert "answering: teacher … 0:0" in capsys.readouterr().err


def test_phases_say_nothing_when_there_was_nothing_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with phases():
        pass
    assert capsys.readouterr() == ("", "")


def test_phases_say_when_all_is_ready_or_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with phases() as say:
        say("loading the teacher")
    shown = capsys.readouterr().err
    assert "loading the teacher …" in shown and "ready after" in shown
    with pytest.raises(OSError, match="disk"), phases() as say:
        say("starting the engines")
        raise OSError("disk")
    assert "starting the engines: failed after" in capsys.readouterr().err


def test_bar_that_was_never_used_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_bar().close()
    assert capsys.readouterr() == ("", "")
