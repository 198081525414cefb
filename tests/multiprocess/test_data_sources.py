"""Runs of real engines on several data sets and on streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import events, reach, same, state, whole

import kdflow_lab as kd
from kdflow_lab import zoo

OPTIONS: dict[str, Any] = {"batch_size": 8, "max_length": 64, "lr": 1e-3, "on_bad_rows": "skip"}
STEPS = 36


def _rows(count: int, seed: int) -> list[dict[str, Any]]:
    made = zoo.dataset("zoo/tasks", rows=count, seed=seed)
    return [{"messages": row["messages"]} for row in made.to_list()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files, the larger one with a malformed last line, the other of another form."""
    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps(row) for row in _rows(150, 1)]
    (folder / "large.jsonl").write_text("\n".join([*lines, '{"messages": ']))
    plain = [
        {"prompt": row["messages"][-2]["content"], "completion": row["messages"][-1]["content"]}
        for row in _rows(30, 2)
    ]
    (folder / "small.jsonl").write_text("\n".join(map(json.dumps, plain)))
    return [str(folder / "large.jsonl"), str(folder / "small.jsonl")]


@pytest.fixture(scope="module")
def streamed(lab: kd.Lab, files: list[str]) -> kd.Run:
    """A run on two streams that nobody disturbed; both end in it and start over."""
    return _start(lab, files, checkpoint_every=16, keep_last=3).wait(timeout=60)


def _start(lab: kd.Lab, files: list[str], **changes: Any) -> kd.Run:
    data = {files[0]: 3, files[1]: 1}
    stream = {"streaming": True, "shuffle_buffer": 20, "steps": STEPS}
    return lab.distill(**{**OPTIONS, "data": data, **stream, **changes})


def test_weights_hold_for_files_rows_of_the_notebook_and_a_teacher_input(
    lab: kd.Lab, files: list[str]
) -> None:
    hinted = [
        {**row, "hint": [{"role": "user", "content": "Answer briefly."}]} for row in _rows(20, 3)
    ]
    data = [
        {"data": files[0], "weight": 2},
        {"data": files[1], "weight": 1},
        {"data": hinted, "weight": 1, "teacher_input": "hint"},
    ]
    run = lab.distill(data=data, steps=10, eval_every=10, eval_rows=12, **OPTIONS)
    run.wait(timeout=60)
    (said,) = events(run, "data")
    assert [one["share"] for one in said["sources"]] == [0.5, 0.25, 0.25]
    assert [one["passes"] for one in said["sources"]] == [round(40 / 150, 3), round(2 / 3, 3), 1.0]
    assert said["skipped"] == 1 and said["sources"][0]["skipped"] == 1
    assert run.config["data"][2]["data"] == str(run.path / "data-2.parquet")
    losses = [record["loss"] for record in run.records]
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert [event["rows"] for event in events(run, "evaluated")] == [12, 12]


def test_stopped_and_resumed_stream_goes_on_at_the_exact_row(
    lab: kd.Lab, files: list[str], streamed: kd.Run
) -> None:
    ends = [event for event in events(streamed, "data") if "message" in event]
    assert sorted(Path(event["data"]).stem for event in ends) == ["large", "small"]
    run = _start(lab, files, checkpoint_every=16)
    reach(run, 10)
    run.stop()
    state(run, "stopped")
    stopped = run.step
    assert 10 <= stopped < STEPS
    run.resume().wait(timeout=60)
    assert [event["from_step"] for event in events(run, "started")] == [0, stopped]
    same(run, streamed)
    whole(run)


def test_fork_of_a_stream_takes_its_parents_rows(streamed: kd.Run) -> None:
    fork = streamed.fork(step=16).wait(timeout=60)
    losses = dict(zip(streamed.metrics["step"], streamed.metrics["loss"], strict=True))
    assert fork.metrics["step"].tolist() == list(range(17, STEPS + 1))
    assert all(losses[one["step"]] == one["loss"] for one in fork.records)


def test_prompts_of_several_data_sets_are_answered(lab: kd.Lab, files: list[str]) -> None:
    data = {files[0]: 1, files[1]: 1}
    written = {"on_policy": True, "steps": 2, "max_new_tokens": 8, "log_rollouts": 8}
    run = lab.distill(data=data, **written, **OPTIONS).wait(timeout=60)
    (said,) = events(run, "data")
    assert [one["prompts"] for one in said["sources"]] == [150, 30]
    assert said["skipped"] == 1 and said["bad_rows"][0]["source"] == "large.jsonl:151"
    logged = [json.loads(line) for line in (run.path / "rollouts.jsonl").open()]
    rows = [one["row"] for one in logged if not one.get("pinned")]
    assert len(rows) == 16 and sum(row >= 151 for row in rows) == 8 and max(rows) < 181


def test_missing_file_among_several_fails_with_the_nearest_name(
    lab: kd.Lab, files: list[str]
) -> None:
    run = lab.distill(data=[files[0], files[1].replace("small", "smal")], steps=2, **OPTIONS)
    state(run, "failed")
    assert "Did you mean 'small.jsonl'" in run.reason


def test_data_set_without_a_row_to_learn_from_is_named(lab: kd.Lab, files: list[str]) -> None:
    long = [{"text": "word " * 200}]
    run = lab.distill(data={files[0]: 1, "zoo/tasks": 1}, steps=2, **{**OPTIONS, "max_length": 8})
    state(run, "failed")
    assert run.reason.startswith(f"{files[0]}: No row is left") and "Raise max_length" in run.reason
    run = lab.distill(data=[files[1], long], steps=2, **OPTIONS)
    state(run, "failed")
    assert run.reason.startswith(f"{run.path / 'data-1.parquet'}: No row is left of 1")
