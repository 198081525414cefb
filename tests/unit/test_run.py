"""A `Run` reads its directory and writes commands into it, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import FAILED, FINISHED, RUNNING, running, steps, write_run
from inspections import write_probes

from kdflow_lab import progress
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.evaluate.run_probes import RunProbes
from kdflow_lab.run import Run, open_run, runs
from kdflow_lab.rundir import RunDirectory


def _commands(run: Run) -> list[dict[str, Any]]:
    path = run.path / "control.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- what it is -----------------------------------------------------------------------------------


def test_metrics_are_one_row_a_step_and_the_last_attempt_counts(tmp_path: Path) -> None:
    records = [
        {"step": 1, "attempt": 1, "loss": 3.0},
        {"step": 2, "attempt": 1, "loss": 2.0},
        {"step": 2, "attempt": 2, "loss": 2.5},
        {"step": 3, "attempt": 2, "loss": 1.0},
    ]
    run = write_run(tmp_path / "a", FINISHED, records)
    table = run.metrics
    assert table["step"].tolist() == [1, 2, 3]
    assert table["loss"].tolist() == [3.0, 2.5, 1.0]
    assert run.step == 3


def test_metrics_grow_with_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", RUNNING)
    assert len(run.metrics) == 0 and run.step == 0
    run.directory.metrics({"step": 1, "loss": 1.0})
    assert len(run.metrics) == 1
    run.directory.metrics({"step": 2, "loss": 0.5})
    assert run.metrics["loss"].tolist() == [1.0, 0.5]


def test_name_path_and_config_come_from_the_directory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", config={"lr": 0.5})
    assert (run.name, run.path, run.config["lr"]) == ("a", tmp_path / "a", 0.5)


def test_steps_are_known_after_the_data_was_counted_and_follow_set(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", RUNNING[:1])
    assert run.steps is None
    run.directory.event("started", steps=10)
    assert run.steps == 10
    run.directory.event("set", changes={"lr": 0.1})
    assert run.steps == 10
    run.directory.event("set", changes={"steps": 25})
    assert run.steps == progress.summary(run).steps == 25


def test_repr_is_name_state_and_step(tmp_path: Path) -> None:
    assert repr(write_run(tmp_path / "a", FINISHED, steps(10))) == "<Run a: finished, step 10/10>"
    assert repr(write_run(tmp_path / "b", RUNNING[:1])) == "<Run b: starting, step 0>"


def test_reason_is_what_the_failed_event_says(tmp_path: Path) -> None:
    assert write_run(tmp_path / "a", FAILED).reason == "the loss is not a number."
    assert write_run(tmp_path / "b", FINISHED).reason == ""
    assert write_run(tmp_path / "c", RUNNING).reason == "Its process died without a word."


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run directory.*kd\.runs"):
        open_run(tmp_path)
    assert open_run(write_run(tmp_path / "a").path).state == "finished"


def test_runs_lists_a_folder_oldest_first(tmp_path: Path) -> None:
    for age, name in ((1, "new"), (3, "old"), (2, "middle")):
        write_run(tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    assert [run.name for run in runs(tmp_path)] == ["old", "middle", "new"]
    assert runs(tmp_path / "nothing") == []


# -- waiting --------------------------------------------------------------------------------------


def test_wait_returns_the_run_that_has_ended(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert run.wait() is run


def test_wait_raises_why_the_run_failed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^a failed: the loss is not a number\.$"):
        write_run(tmp_path / "a", FAILED).wait()


def test_wait_gives_up_after_its_timeout_and_leaves_the_run(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        with pytest.raises(TimeoutError, match=r"a is running after 0\.05 s"):
            run.wait(timeout=0.05)
        assert run.state == "running"
        assert _commands(run) == []


def test_wait_sees_the_end(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        looked = threading.Event()

        def finish() -> None:
            looked.wait()
            RunDirectory(run.path).event("finished", step=3)

        class Watched(Run):
            @property
            def state(self) -> str:
                state = super().state
                if state == "running":
                    looked.set()
                return state

        thread = threading.Thread(target=finish)
        thread.start()
        assert Watched(run.path).wait(timeout=60).state == "finished"
        thread.join()


def test_interrupt_ends_the_waiting_and_says_how_to_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with running(tmp_path / "a") as run:
        monkeypatch.setattr("kdflow_lab.run.time.sleep", interrupt)
        assert run.wait() is run
        assert (
            "a goes on without you. run.stop() or %kdflow stop ends it." in capsys.readouterr().out
        )
        assert run.state == "running"
        assert _commands(run) == []


def test_await_returns_the_run_and_lets_others_work(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:

        async def scene() -> Run:
            async def finish() -> None:
                run.directory.event("finished", step=3)

            waiting = asyncio.ensure_future(run._wait_async())
            await asyncio.sleep(0)  # the waiting has begun
            assert not waiting.done()
            await finish()
            await waiting
            return await run

        assert asyncio.run(scene()) is run


def test_await_raises_why_the_run_failed(tmp_path: Path) -> None:
    async def scene() -> None:
        await write_run(tmp_path / "a", FAILED)

    with pytest.raises(RunError, match="a failed: the loss is not a number"):
        asyncio.run(scene())


# -- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_command_is_a_line_with_an_id_and_its_sender(tmp_path: Path, command: str) -> None:
    with running(tmp_path / "a") as run:
        getattr(run, command)()
        (line,) = _commands(run)
        assert line["command"] == command
        assert line["by"] == f"pid {os.getpid()}"
        assert line["id"]


def test_request_says_by_which_id_it_is_answered_and_who_asked(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        ids = [
            run.request("checkpoint", by="figure, pid 7"),
            run.request("set", {"lr": "1e-3"}, by="figure, pid 7"),
            run.request("pause"),
        ]
        lines = _commands(run)
        assert [line["id"] for line in lines] == ids
        assert [line["by"] for line in lines] == ["figure, pid 7"] * 2 + [f"pid {os.getpid()}"]
        assert lines[1]["changes"] == {"lr": 0.001}
        with pytest.raises(ConfigError, match="'lr' = 'fast'"):
            run.request("set", {"lr": "fast"})
        assert len(_commands(run)) == 3


def test_set_writes_full_names_and_converted_values(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        run.set(lr="1e-4", loss="rkl", steps=20)
        (line,) = _commands(run)
        assert line["command"] == "set"
        changes = {"lr": 1e-4, "loss": "reverse_kl", "loss_params": {}, "steps": 20}
        assert line["changes"] == changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kd_ration": 0.5}, r"Unknown setting 'kd_ration'\. Did you mean 'kd_ratio'\?"),
        ({"batch_size": 3}, "Unknown setting 'batch_size'"),
        ({"lr": -1}, "Option 'lr' = -1 cannot be used"),
        ({"loss": "revers_kl"}, "Unknown divergence 'revers_kl'. Did you mean 'reverse_kl'"),
        ({"steps": None}, "Option 'steps' cannot be set to None"),
        ({}, "Nothing to set. Settings: lr, loss"),
    ],
)
def test_set_refuses_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with running(tmp_path / "a") as run:
        with pytest.raises(ConfigError, match=words):
            run.set(**changes)
        assert _commands(run) == []


@pytest.mark.parametrize("events", [FINISHED, FAILED, RUNNING])
def test_ended_run_takes_no_command(tmp_path: Path, events: Any) -> None:
    run = write_run(tmp_path / "a", events)
    for ask in (run.pause, run.stop, run.checkpoint, run.evaluate, lambda: run.set(lr=0.1)):
        with pytest.raises(RunError, match=r"Cannot \w+ a: it is (finished|failed) already"):
            ask()
    assert _commands(run) == []


def test_an_ended_run_shows_its_probes_or_says_what_to_do(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FINISHED)
    with pytest.raises(RunError, match=r"a has ended without probes. Set probe_every.*model=run"):
        run.inspect()
    with pytest.raises(RunError, match=r"a has no probes of step 3\. It has none yet"):
        run.inspect(3)
    for step in (0, 3, 6):
        write_probes(run.path, step)
    lens = run.inspect()
    assert isinstance(lens.source, RunProbes)
    assert (lens.source.start, lens.source.newest, lens.source.live) == (None, 6, False)
    shown = run.inspect(3, quantity="rank").inspection
    assert shown is not None and shown.step == 3
    with pytest.raises(RunError, match="There are: 0, 3, 6"):
        run.inspect(4)
    with pytest.raises(ConfigError, match="Did you mean 'reverse_kl'"):
        run.inspect(quantity="reverse-kl")
    assert _commands(run) == []


def test_an_active_run_is_asked_for_probes(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        probes = run.inspect().probes
        assert probes is not None and probes.steps == [] and probes.live
        assert [command["command"] for command in _commands(run)] == ["inspect"]


def test_a_parked_run_shows_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", PARKED)
    write_probes(run.path, 3)
    shown = run.inspect().inspection
    assert shown is not None and shown.step == 3
    assert _commands(run) == []


PARKED = (*RUNNING, ("paused", {"step": 4}), ("parked", {"step": 3}))


def test_parked_run_takes_no_command_and_says_what_takes_it_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", PARKED)
    assert run.state == "paused" and run.parked
    for ask in (run.pause, run.stop, run.inspect, lambda: run.set(lr=0.1)):
        with pytest.raises(RunError, match=r"has left the engines.*run\.resume\(\) takes it up"):
            ask()
    assert _commands(run) == []


class _Engines:
    """A lab that notes what it is asked; a real one starts engines."""

    def __init__(self) -> None:
        self.asked: list[tuple[Run, dict[str, Any]]] = []

    def resume(self, run: Run, **changes: Any) -> Run:
        self.asked.append((run, changes))
        return run


@pytest.mark.parametrize("events", [FINISHED, FAILED, RUNNING, PARKED])
def test_resume_of_a_run_that_nobody_trains_goes_to_its_lab(tmp_path: Path, events: Any) -> None:
    lab: Any = _Engines()
    run = Run(write_run(tmp_path / "a", events).path, lab=lab)
    assert run.resume(steps=20) is run
    assert lab.asked == [(run, {"steps": 20})]
    assert _commands(run) == []


def test_resume_of_a_paused_run_changes_options_first(tmp_path: Path) -> None:
    with running(tmp_path / "a", events=PARKED[:-1]) as run:
        assert run.resume(lr="2e-4") is run
        assert [one["command"] for one in _commands(run)] == ["set", "resume"]
        assert _commands(run)[0]["changes"] == {"lr": 2e-4}


def test_steps_beyond_the_checkpoint_of_a_resumed_run_count_no_more(tmp_path: Path) -> None:
    """Attempt 2 began from step 2: what attempt 1 did at 3 and 4 is taken back, step by step."""
    run = write_run(tmp_path / "a", RUNNING, steps(4))
    assert run.step == 4
    run.directory.event("starting", attempt=2)
    run.directory.event("started", attempt=2, from_step=2, steps=10)
    assert run.step == 2
    run.directory.metrics({"step": 3, "attempt": 2, "loss": 9.0})
    assert [(one["step"], one["attempt"]) for one in run.records] == [(1, 1), (2, 1), (3, 2)]
