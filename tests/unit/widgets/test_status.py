"""The header of a run's figure: what it says, and that a click reaches the run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kdflow_lab.progress import summary
from kdflow_lab.run import Run
from kdflow_lab.widgets.status import StatusHeader


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
    assert "kdflow-status" in state["_esm"]
