"""What would ruin a run or leave it hanging is met, said in words, and costs nothing but time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from faults import (
    SMALL,
    events,
    fails_soon,
    fill,
    goes_on,
    pids,
    reach,
    send,
    small_disk,
    state,
    training,
    wait_for,
    whole,
)
from safetensors.torch import load_file

import kdflow_lab as kd
from kdflow_lab.errors import RunError
from kdflow_lab.jobs import StudentPlace, TrainJob

# -- numbers that are none ----------------------------------------------------------------------

MARK = "%"
"""No zoo task has it; the poisoned teacher gives NaN from this token on."""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A lab of two students whose teacher has NaN in the embedding of one token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("poisoned")
    path = kd.zoo.path("zoo/teacher")
    tokenizer = AutoTokenizer.from_pretrained(path)
    (mark,) = tokenizer.encode(MARK, add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    cast(Any, model.get_input_embeddings().weight).data[mark] = torch.nan
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    with kd.Lab(
        str(folder / "teacher"), "zoo/student", students=2, threads=1, dir=str(folder / "runs")
    ) as lab:
        yield lab


def _rows(marked: set[int]) -> list[dict[str, str]]:
    """32 rows, those in `marked` with the token that poisons."""
    return [
        {
            "prompt": f"Reverse: {MARK if row in marked else 'x'} {chr(97 + row % 26)} b",
            "response": f"Reversed: b {chr(97 + row % 26)}",
        }
        for row in range(32)
    ]


def test_step_with_a_loss_that_is_no_number_is_left_out_on_all_ranks(poisoned: kd.Lab) -> None:
    run = poisoned.distill(data=_rows({5}), batch_size=8, steps=8, lr=1e-3).wait(timeout=60)
    skipped = events(run, "skipped")
    assert len(skipped) == 2  # two epochs, and the row is once in each
    for event in skipped:
        assert event["in_a_row"] == 1
        assert event["loss"] == "nan"
        kept = [load_file(file) for file in run.directory.skipped.glob(f"{event['step']}-*")]
        assert len(kept) == 2  # of each rank
        taken = [int(row) for part in kept for name in part if "data_rows" in name
                 for row in part[name]]  # fmt: skip
        assert len(taken) == 8
        assert 5 in taken
        assert Path(event["batch"]).parent == run.directory.skipped
    losses = {record["step"]: record["loss"] for record in run.records}
    assert {step for step, loss in losses.items() if loss is None} == {
        event["step"] for event in skipped
    }
    assert all(bool(weight.isfinite().all()) for weight in run.student().state_dict().values())
    whole(run)


def test_too_many_skipped_steps_in_a_row_fail_the_run_which_can_be_resumed(
    poisoned: kd.Lab,
) -> None:
    data = _rows(set(range(32)))
    run = poisoned.distill(data=data, batch_size=8, steps=20, lr=1e-3, max_skipped_steps=3)
    with pytest.raises(RunError) as caught:
        run.wait(timeout=60)
    assert "3 steps in a row, up to 3" in str(caught.value)
    assert "kdflow replay" in str(caught.value)
    assert [event["in_a_row"] for event in events(run, "skipped")] == [1, 2, 3]
    assert run.checkpoints == [3]
    run.resume()
    state(run, "failed")
    assert [event["from_step"] for event in events(run, "started")] == [0, 3]
    assert run.step == 6
    whole(run)


# -- processes that hang ------------------------------------------------------------------------


@pytest.mark.parametrize(("students", "role"), [(2, "student 1"), (1, "student 0"), (1, "teacher")])
def test_stopped_process_is_named_ended_and_replaced(
    request: pytest.FixtureRequest, students: int, role: str
) -> None:
    lab: kd.Lab = request.getfixturevalue("lab" if students == 2 else "lab_of_one")
    run = training(lab, at=11, timeout_s=4)
    victim = send(lab, role, signal.SIGSTOP)
    reason = fails_soon(run, seconds=4 + 4)
    assert f"{role} (pid {victim})" in reason
    assert "4 s" in reason
    assert [(one["roles"], one["pids"]) for one in events(run, "worker_stuck")] == [
        ([role], [victim])
    ]
    wait_for(lambda: not psutil.pid_exists(victim), seconds=5, what="its end")

    run.resume(steps=15)
    state(run, "finished")
    assert [event["from_step"] for event in events(run, "started")] == [0, 10]
    assert pids(lab)[role] != victim
    whole(run)


def test_process_that_is_stopped_for_less_than_the_timeout_costs_only_the_time(
    lab: kd.Lab,
) -> None:
    run = training(lab)
    before = pids(lab)
    send(lab, "student 1", signal.SIGSTOP)
    time.sleep(6)  # longer than the control plane waits for a heart beat by itself
    send(lab, "student 1", signal.SIGCONT)
    goes_on(run)
    assert pids(lab) == before
    assert lab.status().state == "up"
    run.stop()
    state(run, "stopped")
    whole(run)


# -- disks that are full or closed --------------------------------------------------------------


def _prefixes(before: dict[Path, bytes]) -> None:
    """Hold that files were only appended to."""
    for file, content in before.items():
        assert file.read_bytes().startswith(content), file.name


def _moved(run: kd.Run, disk: Path, lab: kd.Lab) -> kd.Run:
    """Copy a finished run onto another disk."""
    shutil.copytree(run.path, disk / run.name, ignore=shutil.ignore_patterns(".lock", ".reserve"))
    return kd.Run(disk / run.name, lab=lab)


def test_full_disk_costs_no_line_and_no_checkpoint(lab_of_one: kd.Lab, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=64) as disk:
        # no checkpoint is due meanwhile, whose warning would meet the full disk before the metrics
        options = {**SMALL, "checkpoint_every": None, "steps": 10}
        run = _moved(lab_of_one.distill(**options).wait(), disk, lab_of_one)
        d = run.directory
        kept = {
            file: file.read_bytes()
            for file in (d.metrics_file, d.events_file, *(d.checkpoints / "10").iterdir())
        }
        filler = fill(disk, leave=2_000_000)
        run.resume(steps=100_000)
        reach(run, 12)
        run.checkpoint()  # no room: a warning, and the run goes on
        wait_for(lambda: events(run, "warning"))
        reach(run, run.step + 3)
        warning = events(run, "warning")[-1]["message"]
        assert "cannot be written" in warning
        assert "Earlier ones are untouched" in warning

        fill(disk)
        reason = fails_soon(run, seconds=60)
        assert "metrics.jsonl cannot be written: No space left on device" in reason
        assert "resume" in reason
        _prefixes(kept)
        filler.unlink()
        assert run.checkpoints == [10]
        run.resume(steps=15)
        state(run, "finished")
        assert [event["from_step"] for event in events(run, "started")] == [0, 10, 10]
        assert [record["step"] for record in run.records] == list(range(1, 16))
        _prefixes(kept)
        whole(run)


def test_read_only_directory_is_said_at_once(lab_of_one: kd.Lab, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=64) as disk:
        run = _moved(lab_of_one.distill(**SMALL, steps=10).wait(), disk, lab_of_one)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunError, match="cannot be written: Read-only file system"):
            run.resume(steps=20)
        with pytest.raises(RunError, match="cannot be made: Read-only file system"):
            kd.Lab("zoo/teacher", "zoo/student", dir=str(disk / "runs")).distill(steps=1)
        assert run.state == "finished"  # it can still be read
        assert run.student() is not None


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate "
                     "memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate)"),
    ],
)  # fmt: skip
def test_want_of_memory_is_answered_with_what_to_lower(error: Exception) -> None:
    from kdflow_lab.worker import _advice

    config: dict[str, Any] = {
        "micro_batch_tokens": 8192,
        "chunk_tokens": "auto",
        "activation_checkpointing": False,
    }
    job = TrainJob(cast(StudentPlace, _Rank()), "run", "student", None, config)
    advice = _advice(error, job)
    for word in ("Rank 1", "micro_batch_tokens (now 8192)", "activation_checkpointing", "fork"):
        assert word in advice
    job.config["activation_checkpointing"] = True
    assert "activation_checkpointing" not in _advice(error, job)
    assert _advice(ValueError("something else"), job) == ""
    assert json.dumps(advice)


class _Rank:
    rank = 1
