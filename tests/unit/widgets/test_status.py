"""The header of a run's figure: what it says, and that a click reaches the run."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from kdflow_lab.errors import ConfigError
from kdflow_lab.progress import summary
from kdflow_lab.run import Run
from kdflow_lab.widgets.status import StatusHeader

LAB = {"teacher": "zoo/teacher", "student": "zoo/student"}


def _commands(run: Run) -> list[dict[str, Any]]:
    file = run.directory.control_file
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _click(header: StatusHeader, command: str) -> None:
    """As the browser's `model.send({command})` arrives."""
    header._handle_custom_msg({"command": command}, [])


@pytest.mark.parametrize(
    ("state", "command"),
    [("running", "pause"), ("paused", "resume"), ("running", "stop"), ("starting", "stop")],
)
def test_a_click_is_a_command_in_the_run_directory(make_run, state, command):
    run = make_run(state=state)
    _click(StatusHeader(run), command)
    (line,) = _commands(run)
    assert line["command"] == command
    assert line["id"]


def test_a_click_stays_asked_until_the_run_answers(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _click(header, "pause")
    header.show(summary(run))
    assert (header.state, header.asked) == ("running", "pause")
    run.directory.event("paused", step=31)
    header.show(summary(run))
    assert (header.state, header.asked) == ("paused", "")
    assert len(_commands(run)) == 1  # being answered is no click


def test_the_end_of_the_run_answers_everything(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _click(header, "pause")
    run.directory.event("finished")
    header.show(summary(run))
    assert (header.state, header.asked) == ("finished", "")


def test_a_click_on_an_ended_run_is_refused_in_words(make_run):
    run = make_run(state="stopped")
    header = StatusHeader(run)
    _click(header, "pause")
    refused = "Cannot pause my-run: it is stopped already."
    assert (header.asked, header.note) == ("", refused)
    assert _commands(run) == []
    header.show(summary(run))
    assert header.note == refused  # the next redraw does not wipe the answer away


def test_the_header_says_where_the_run_stands(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    header.show(summary(run))
    assert (header.name, header.state, header.step, header.steps) == ("my-run", "running", 30, 100)
    assert header.headline.startswith("step 30/100 · loss ")
    assert "tokens/s" in header.headline
    assert header.note == ""


def test_the_newest_warning_is_the_note(make_run):
    run = make_run(state="running")
    run.directory.event("warning", message="first")
    run.directory.event("warning", message="second")
    header = StatusHeader(run)
    header.show(summary(run))
    assert header.note == "second"


def test_a_failed_run_says_why(make_run):
    run = make_run(state="failed")
    header = StatusHeader(run)
    header.show(summary(run))
    assert (header.state, header.note) == ("failed", "The teacher <died> & left.")


def test_steps_that_are_not_known_yet_are_zero(make_run):
    run = make_run(steps=0, state="starting")
    run.directory.events_file.unlink()
    header = StatusHeader(run)
    header.show(summary(run))
    assert header.steps == 0
    assert header.headline.startswith("step 0 ·")


def test_the_front_end_gets_all_traits_and_the_javascript(make_run):
    header = StatusHeader(make_run())
    state = header.get_state()
    assert {"name", "state", "headline", "note", "step", "steps", "asked"} <= set(state)
    assert {"knobs", "pending", "errors", "settled", "fork_fields", "forked"} <= set(state)
    assert "kdflow-status" in state["_esm"]
    assert "export default { render };" in state["_esm"]
    assert 'from "./' not in state["_esm"]  # a page could not find other modules


# -- knobs ----------------------------------------------------------------------------------------


def _show(header: StatusHeader, run: Run) -> None:
    """As the figure's thread does."""
    header.show(summary(run))
    header.show_options(run.config, run.events, checkpoints=run.checkpoints)


def _turn(header: StatusHeader, name: str, value: str) -> None:
    header._handle_custom_msg({"command": "set", "name": name, "value": value}, [])


def test_a_knob_is_a_set_command_and_pending_until_the_run_answers(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _turn(header, "lr", "3e-4")
    (line,) = _commands(run)
    assert (line["command"], line["changes"]) == ("set", {"lr": 0.0003})
    assert line["by"] == f"figure, pid {os.getpid()}"
    _show(header, run)
    assert header.pending == {"lr": "3e-4"}
    run.directory.event("set", step=31, id="of another kernel", by="x", changes={"lr": 7.0})
    _show(header, run)
    assert header.pending == {"lr": "3e-4"}
    run.directory.event("set", step=31, id=line["id"], by=line["by"], changes=line["changes"])
    _show(header, run)
    assert header.pending == {}
    assert next(knob for knob in header.knobs if knob["name"] == "lr")["value"] == "0.0003"
    assert header.settled == f"lr = 0.0003 from step 31 on, by figure, pid {os.getpid()}"


def test_a_wrong_value_is_refused_at_its_knob_as_set_refuses_it(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _turn(header, "lr", "fast")
    with pytest.raises(ConfigError) as refused:
        run.set(lr="fast")
    assert header.errors == {"lr": str(refused.value)}
    assert header.pending == {}
    assert _commands(run) == []
    _turn(header, "kd_ratio", "3")
    assert set(header.errors) == {"lr", "kd_ratio"}
    _turn(header, "lr", "1")
    assert set(header.errors) == {"kd_ratio"}
    header._handle_custom_msg({"command": "forget", "name": "kd_ratio"}, [])
    assert header.errors == {}


def test_what_the_training_refuses_is_said_at_the_knob_too(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _turn(header, "lmbda", "0.5")
    (line,) = _commands(run)
    message = "set refused: lmbda=0.5 needs answers of the data"
    run.directory.event("warning", message=message, id=line["id"], step=31)
    _show(header, run)
    assert (header.pending, header.errors) == ({}, {"lmbda": message})


def test_an_option_that_is_no_setting_is_refused(make_run):
    header = StatusHeader(make_run(state="running"))
    _turn(header, "batch_size", "4")
    assert "Unknown setting 'batch_size'" in header.errors["batch_size"]


def test_the_end_of_the_run_leaves_nothing_pending(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _turn(header, "lr", "1")
    run.directory.event("finished")
    _show(header, run)
    assert header.pending == {}


def test_a_checkpoint_is_asked_for_until_it_is_done(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _click(header, "checkpoint")
    (line,) = _commands(run)
    _show(header, run)
    assert header.asked == "checkpoint"
    run.directory.event("checkpoint", step=30)
    run.directory.event("done", command="checkpoint", id=line["id"], step=31)
    _show(header, run)
    assert (header.asked, header.note) == ("", "")


def test_a_checkpoint_that_failed_says_why(make_run):
    run = make_run(state="running")
    header = StatusHeader(run)
    _click(header, "checkpoint")
    (line,) = _commands(run)
    run.directory.event("warning", message="checkpoint failed: full", id=line["id"], step=31)
    _show(header, run)
    assert (header.asked, header.note) == ("", "checkpoint failed: full")


# -- forks ----------------------------------------------------------------------------------------


def test_a_fork_that_cannot_be_made_is_answered_in_the_form(make_run):
    header = StatusHeader(make_run(state="running", lab=LAB))
    header._handle_custom_msg({"command": "fork", "step": None, "changes": {"steps": " "}}, [])
    assert header.errors["fork"].startswith("my-run has no checkpoint yet.")
    assert (header.pending, header.forked) == ({}, {})


def test_a_fork_is_made_by_the_run_and_named_with_the_line_that_opens_it(make_run, monkeypatch):
    run = make_run(state="running")
    asked: dict[str, Any] = {}

    def fork(self: Run, *, step: int | None = None, **changes: Any) -> Run:
        asked.update(step=step, **changes)
        return make_run(name="my-fork", parent={"run": str(run.path), "step": 20})

    monkeypatch.setattr(Run, "fork", fork)  # what it does is tested where it is: a lab is needed
    monkeypatch.chdir(run.path.parent)
    header = StatusHeader(run)
    changes = {"steps": "200", "lr": "", "loss_params": "{beta: 0.2}"}
    header._handle_custom_msg({"command": "fork", "step": 20, "changes": changes}, [])
    assert asked == {"step": 20, "steps": "200", "loss_params": {"beta": 0.2}}
    code = 'kd.open_run("my-fork").plot()'
    assert header.forked == {"name": "my-fork", "step": 20, "code": code}


# -- who looks ------------------------------------------------------------------------------------


def test_it_is_known_how_long_no_page_has_shown_the_header(make_run):
    header = StatusHeader(make_run())
    assert header.unseen_s == 0  # no page has said anything yet
    for command in ("shown", "shown", "hidden"):
        _click(header, command)
    assert header.unseen_s == 0  # one of two is left
    _click(header, "hidden")
    assert header.unseen_s > 0
    _click(header, "shown")
    assert header.unseen_s == 0
