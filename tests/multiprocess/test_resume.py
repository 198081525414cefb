"""A run that was cut off goes on as if it had not been, on any number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import run_audit
import torch
from faults import SMALL, events, fails_soon, goes_on, reach, same, send, state, training, wait_for
from faults import whole as assert_whole

import kdflow_lab as kd
from kdflow_lab.errors import RunError
from kdflow_lab.jsonl import JsonlTail

STEPS = 60
NEW_LR = 5e-4


def _cut(folder: Path) -> None:
    """Tear a checkpoint, as a machine that loses power does: its largest file loses its end."""
    file = max(folder.glob("*.distcp"), key=lambda one: one.stat().st_size)
    with file.open("r+b") as torn:
        torn.truncate(file.stat().st_size // 2)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _begun(run: kd.Run) -> list[int]:
    """The step from which each attempt began."""
    return [event["from_step"] for event in events(run, "started")]


def _close_to(run: kd.Run, other: kd.Run) -> None:
    """Hold that two runs agree to 1e-5, as they do when their sums have another order."""
    for name in ("loss", "kd", "ce", "lr", "tokens"):
        ours = torch.tensor(run.metrics[name], dtype=torch.float64)
        theirs = torch.tensor(other.metrics[name], dtype=torch.float64)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    last = (one.path / "checkpoints" / str(STEPS) for one in (run, other))
    ours, theirs = map(run_audit.tensors, last)
    for name in ours:
        if "rng" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def killed(lab: kd.Lab) -> kd.Run:
    """A run of 60 steps on two students, cut off by kill -9 and resumed from its checkpoint."""
    run = training(lab, steps=STEPS, checkpoint_every=20, at=21)
    run.set(lr=NEW_LR)
    (changed,) = wait_for(lambda: events(run, "set"))
    reach(run, changed["step"] + 2)
    send(lab, "student 1")
    fails_soon(run)
    return run.resume().wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(lab: kd.Lab, killed: kd.Run) -> kd.Run:
    """The same run, with the same change at the same step, that nobody disturbed."""
    return _with_change(lab, killed).wait(timeout=60)


def _with_change(lab: kd.Lab, killed: kd.Run) -> kd.Run:
    """Start a run in which the change that was made in `killed` is to come at the same step."""
    run = lab.distill(**{**SMALL, "steps": STEPS, "checkpoint_every": 20})
    changed = events(killed, "set")[0]
    run.directory.event("set", changes=changed["changes"], step=changed["step"])
    return run


def test_killed_and_resumed_run_equals_the_undisturbed_one_bit_for_bit(
    killed: kd.Run, undisturbed: kd.Run
) -> None:
    assert _begun(killed) == [0, 20]
    same(killed, undisturbed)
    assert_whole(killed)
    assert_whole(undisturbed)


def test_change_after_the_checkpoint_is_made_again_at_its_step(killed: kd.Run) -> None:
    first, again = events(killed, "set")
    assert 20 < first["step"] == again["step"]
    assert again["replayed"]
    lrs = {record["step"]: record["lr"] for record in killed.records}
    assert [lrs[first["step"] - 1], lrs[first["step"]], lrs[STEPS]] == [1e-3, NEW_LR, NEW_LR]


def test_stopped_run_goes_on_also_with_another_number_of_students(
    lab: kd.Lab, lab_of_one: kd.Lab, killed: kd.Run, undisturbed: kd.Run
) -> None:
    run = _with_change(lab, killed)
    reach(run, 10)
    run.stop()
    state(run, "stopped")
    stopped = run.step
    assert run.checkpoints == [stopped]

    run.resume()
    assert run.state in ("starting", "running")  # the stop of the attempt before is not obeyed
    reach(run, 30)
    run.stop()
    state(run, "stopped")
    reference = {record["step"]: record["loss"] for record in undisturbed.records}
    assert all(record["loss"] == reference[record["step"]] for record in run.records)

    lab_of_one.resume(run.path).wait(timeout=60)
    assert [event["world_size"] for event in events(run, "started")] == [2, 2, 1]
    assert _begun(run)[:2] == [0, stopped]
    _close_to(run, undisturbed)
    assert_whole(run)


def test_finished_run_goes_on_when_it_is_asked_for_more_steps(lab_of_one: kd.Lab) -> None:
    run = lab_of_one.distill(**SMALL, steps=12).wait()
    with pytest.raises(RunError, match="larger number"):
        run.resume()
    with pytest.raises(RunError, match="larger number"):
        run.resume(steps=12)
    run.resume(steps=20).wait(timeout=60)
    assert _begun(run) == [0, 12]
    same(run, lab_of_one.distill(**SMALL, steps=20).wait())
    assert_whole(run)


def test_torn_checkpoints_are_named_and_not_taken(lab_of_one: kd.Lab) -> None:
    run = lab_of_one.distill(**SMALL, steps=20).wait()
    before = run_audit.tensors(run.path / "checkpoints" / "20")
    half = run.path / "checkpoints" / ".30.tmp"
    shutil.copytree(run.path / "checkpoints" / "20", half)

    _cut(run.path / "checkpoints" / "20")
    with pytest.raises(RunError, match=r"20 is damaged.*10"):
        run.fork(steps=30)
    run.resume().wait(timeout=60)
    assert _begun(run) == [0, 10]
    (warning,) = events(run, "warning")
    assert "checkpoints/20 is damaged" in warning["message"]
    assert "Going on from the checkpoint of step 10" in warning["message"]
    assert_whole(run)

    for step in run.checkpoints:
        _cut(run.path / "checkpoints" / str(step))
    run.resume().wait(timeout=60)
    assert _begun(run) == [0, 10, 0]
    said = [event["message"] for event in events(run, "warning")[1:]]
    assert [text for text in said if "starts again" in text]
    after = run_audit.tensors(run.path / "checkpoints" / "20")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert_whole(run)


def test_torn_checkpoint_does_not_push_out_a_whole_one(lab_of_one: kd.Lab) -> None:
    """Step 20 is torn and of more steps than what is saved next; that one must stay."""
    run = lab_of_one.distill(**SMALL, steps=20, keep_last=1).wait()
    _cut(run.path / "checkpoints" / "20")
    run.resume(steps=100_000)
    wait_for(lambda: len(events(run, "started")) == 2)
    run.pause()
    state(run, "paused")
    assert run.checkpoints == [run.step] < [20]
    run.stop()
    state(run, "stopped")
    assert_whole(run)


def test_newest_and_best_checkpoints_stay(lab_of_one: kd.Lab) -> None:
    run = lab_of_one.distill(**SMALL, steps=30, keep_last=1, eval_every=10, eval_rows=8)
    run.directory.event("set", changes={"lr": 1.0, "max_grad_norm": 1e3}, step=11)  # a ruin
    run.wait(timeout=60)
    assert [event["step"] for event in events(run, "evaluated")] == [0, 10, 20, 30]
    assert run.checkpoints == [10, 30]
    assert events(run, "checkpoint")[0]["why"] == "best so far"

    run.resume(steps=33).wait(timeout=60)
    assert [event["step"] for event in events(run, "evaluated")] == [0, 10, 20, 30, 33]
    assert run.checkpoints == [10, 33]
    assert_whole(run)


def test_commands_are_done_at_one_step_by_all_ranks_and_answered_once(lab: kd.Lab) -> None:
    run = training(lab, checkpoint_every=None, eval_rows=8)
    run.checkpoint()
    run.evaluate()
    run.inspect()
    wait_for(lambda: len(events(run, "done")) == 3)
    done = events(run, "done")
    assert [event["command"] for event in done] == ["checkpoint", "evaluate", "inspect"]
    asked = JsonlTail(run.directory.control_file).read()
    assert [event["id"] for event in done] == [command["id"] for command in asked]

    saved = events(run, "checkpoint")[0]
    assert saved["step"] == done[0]["step"] - 1  # what is done is the step before the next one
    files = {file.name for file in Path(saved["path"]).iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", "state.json"} <= files
    assert events(run, "evaluated")[0]["step"] == done[1]["step"] - 1
    probes = events(run, "probes")[0]
    assert probes["step"] == done[2]["step"] - 1
    assert Path(probes["path"]).exists()

    goes_on(run)
    run.stop()
    state(run, "stopped")
    assert_whole(run)


def test_fork_takes_the_engines_of_its_paused_parent_which_goes_on_later(
    lab_of_one: kd.Lab,
) -> None:
    parent = training(lab_of_one)
    parent.pause()
    state(parent, "paused")
    step = parent.step

    fork = parent.fork(loss="reverse_kl", lr=NEW_LR, steps=step + 5).wait(timeout=60)
    assert (parent.state, parent.parked) == ("paused", True)
    assert fork.parent == {"run": str(parent.path), "step": step}
    changed = {"loss": "reverse_kl", "lr": NEW_LR, "steps": step + 5}
    assert {name: fork.config[name] for name in changed} == changed
    assert fork.config["batch_size"] == parent.config["batch_size"]
    assert _begun(fork) == [step]
    assert [record["step"] for record in fork.records] == list(range(step + 1, step + 6))
    assert_whole(fork)

    parent.resume()
    goes_on(parent)
    assert _begun(parent) == [0, step]
    parent.stop()
    state(parent, "stopped")
    assert_whole(parent)

    last = parent.step
    orphan = parent.fork(steps=last + 5)
    shutil.rmtree(parent.path)
    orphan.wait(timeout=60)
    assert _begun(orphan) == [last]
    assert_whole(orphan)


def test_second_lab_is_refused_while_the_first_one_has_the_run(
    lab: kd.Lab, lab_of_one: kd.Lab
) -> None:
    run = training(lab_of_one)
    run.pause()
    state(run, "paused")
    before = _contents(run.path)
    with pytest.raises(RunError, match="is paused"):
        lab.resume(run.path)
    assert lab._client is not None
    with pytest.raises(RunError, match="is paused"):
        lab._client.ask("train", run=str(run.path))
    assert _contents(run.path) == before

    run.resume()
    goes_on(run)
    with pytest.raises(RunError, match="is running"):
        lab.resume(run.path)
    assert len(events(run, "starting")) == 1
    run.stop()
    state(run, "stopped")
    assert_whole(run)


def test_commands_of_an_earlier_attempt_are_not_obeyed_again(lab_of_one: kd.Lab) -> None:
    run = training(lab_of_one)
    commands: list[Any] = [run.pause, lambda: run.set(lr=NEW_LR), run.resume, run.checkpoint]
    for command in commands:
        command()
    wait_for(lambda: events(run, "done"))
    run.stop()
    state(run, "stopped")
    run.directory.command("pause")  # after its last word: nobody was there to obey
    run.resume()
    wait_for(lambda: len(events(run, "started")) == 2)
    goes_on(run)
    assert len(events(run, "paused")) == len(events(run, "resumed")) == 1
    run.stop()
    state(run, "stopped")
    assert_whole(run)
