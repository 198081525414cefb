"""A whole lab on real engines: what a run says of itself, its commands, and what it learns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdflow_lab as kd
from kdflow_lab.errors import RunError
from kdflow_lab.losses import divergence
from kdflow_lab.metrics import COLUMNS

SMALL = {"data": "zoo/tasks", "rows": 256, "batch_size": 16, "lr": 1e-3}
TIMES = ["tokens_per_s", "step_s", "teacher_wait_s", "teacher_busy_s", "students_idle"]
TIMES += ["teacher_idle", "memory_bytes", "time"]


def _metrics(run: kd.Run) -> Any:
    """The frame; pandas' stubs know too little of comparisons."""
    return run.metrics


def _rows(data: Any) -> list[dict[str, Any]]:
    return list(data)


def _event(run: kd.Run, name: str) -> dict:
    return next(event for event in run.events if event["event"] == name)


def _wait_for(condition, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def run(lab: kd.Lab) -> kd.Run:
    """A short run of two students."""
    return lab.distill(**SMALL, steps=6).wait()


def test_started_event_says_what_makes_the_run_real(lab: kd.Lab, run: kd.Run) -> None:
    started = _event(run, "started")
    assert started["world_size"] == 2
    ranks = [rank["shards"]["rank"] for rank in started["ranks"]]
    assert ranks == [0, 1]
    for rank in started["ranks"]:
        shards = rank["shards"]
        assert shards["dtensors"] == shards["parameters"] > 0
        assert shards["local_elements"] * 2 == shards["total_elements"]
        assert rank["transport"]["transport"] == "shared memory (memfd)"
        assert rank["transport"]["slots"] == run.config["depth"]
    pids = {rank["pid"] for rank in started["ranks"]} | {started["teacher_pid"]}
    assert len(pids) == 3
    for pid in pids:
        assert Path(f"/proc/{pid}").exists()
    assert started["backend"] == "transformers"
    assert started["packing"] is True
    assert {"torch", "transformers", "python"} <= started["versions"].keys()


def test_metrics_hold_every_step(run: kd.Run) -> None:
    metrics = _metrics(run)
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert tuple(metrics.columns) == COLUMNS
    assert (metrics["attempt"] == 1).all()
    mixed = 0.5 * metrics["ce"] + 0.5 * metrics["kd"]
    np.testing.assert_allclose(metrics["loss"], mixed, rtol=1e-6)
    assert metrics["agreement"].between(0, 1).all()
    assert (metrics["tokens"] < metrics["total_tokens"]).all()
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]


def test_the_same_seed_repeats_bit_for_bit(lab: kd.Lab, run: kd.Run) -> None:
    again = lab.distill(**SMALL, steps=6).wait()
    other = lab.distill(**SMALL, steps=2, seed=7).wait()
    assert again.metrics.drop(columns=TIMES).equals(run.metrics.drop(columns=TIMES))
    assert other.metrics["loss"].iloc[0] != run.metrics["loss"].iloc[0]
    ours, theirs = again.student().state_dict(), run.student().state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_turns_change_nothing_but_the_order_of_work(lab: kd.Lab, run: kd.Run) -> None:
    """As where teacher and students share a GPU: the last phase of this run is a short one."""
    turns = lab.distill(**SMALL, steps=6, teacher_batches_per_phase=4, eval_every=3).wait()
    started = _event(turns, "started")
    assert [rank["transport"]["slots"] for rank in started["ranks"]] == [4, 4]
    assert started["ranks"][0]["transport"]["why"] == "auto: the students compute on a CPU"
    assert _metrics(turns)["loss"].tolist() == _metrics(run)["loss"].tolist()


def test_two_students_learn_what_one_learns(lab_of_one: kd.Lab, run: kd.Run) -> None:
    alone = lab_of_one.distill(**SMALL, steps=6).wait()
    for column in ("loss", "kd", "ce", "grad_norm"):
        np.testing.assert_allclose(alone.metrics[column], run.metrics[column], rtol=1e-4)
    assert alone.metrics["tokens"].tolist() == run.metrics["tokens"].tolist()
    np.testing.assert_allclose(alone.metrics["loss"][0], run.metrics["loss"][0], rtol=1e-5)


def test_pause_resume_set_and_stop_take_effect_between_steps(lab: kd.Lab) -> None:
    run = lab.distill(**SMALL, steps=100_000, scheduler="constant", warmup_ratio=0)
    assert run.state == "starting"
    _wait_for(lambda: run.step >= 2)
    assert run.state == "running"

    run.pause()
    _wait_for(lambda: run.state == "paused")
    step = run.step
    time.sleep(0.5)
    assert run.step == step

    run.set(lr=5e-4, loss="reverse_kl")
    run.resume()
    _wait_for(lambda: run.step >= step + 3)
    changed = _event(run, "set")
    assert changed["changes"] == {"lr": 5e-4, "loss": "reverse_kl"}
    assert changed["step"] == step + 1
    lrs = _metrics(run).set_index("step")["lr"]
    assert lrs[step] == 1e-3
    assert (lrs[lrs.index > step] == 5e-4).all()

    run.stop()
    run.wait(timeout=30)
    assert run.state == "stopped"
    kinds = [event["event"] for event in run.events]
    assert kinds.index("paused") < kinds.index("set") < kinds.index("resumed")
    commands = [line for line in run.directory.control_file.read_text().splitlines() if line]
    acknowledged = [event["id"] for event in run.events if event.get("id")]
    assert len(commands) == len(acknowledged) == 4
    with pytest.raises(RunError, match="stopped already"):
        run.pause()
    run.student()  # its weights were kept


def test_runs_take_turns_and_the_lab_says_who_is_busy(lab: kd.Lab) -> None:
    first = lab.distill(**SMALL, steps=100_000)
    second = lab.distill(**SMALL, steps=1)
    _wait_for(lambda: first.step >= 1)
    assert second.state == "starting"
    with pytest.raises(RunError, match=f"busy with .*{first.name}"):
        lab.evaluate(rows=4)
    first.stop()
    second.wait(timeout=60)
    assert (first.state, second.state) == ("stopped", "finished")


def test_export_is_the_runs_student(run: kd.Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run.export(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("Sort the letters: k b x a", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids).logits, run.student()(ids).logits, rtol=1e-5, atol=1e-5
        )
    start = AutoModelForCausalLM.from_pretrained(kd.zoo.path("zoo/student"))
    assert not torch.equal(start.lm_head.weight, model.lm_head.weight)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    run.export(folder)  # the same folder again
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(RunError, match="not a model folder"):
        run.export(tmp_path / "mine")


def test_sft_needs_no_teacher(lab: kd.Lab) -> None:
    run = lab.sft(**SMALL, steps=3).wait()
    started = _event(run, "started")
    assert started["backend"] is None
    assert [rank["transport"] for rank in started["ranks"]] == [None, None]
    assert _metrics(run)["kd"].isna().all()
    np.testing.assert_allclose(run.metrics["loss"], run.metrics["ce"])


def test_evaluation_equals_plain_transformers(lab: kd.Lab) -> None:
    """KL, agreement and exact match of a few rows, computed here the plain way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = lab.evaluate("zoo/tasks", model="student", rows=24, seed=3)
    folders = {name: kd.zoo.path(f"zoo/{name}") for name in ("teacher", "student")}
    tokenizer = AutoTokenizer.from_pretrained(folders["student"])
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name, folder in folders.items()
    }
    kl, agreed, tokens = 0.0, 0.0, []
    for row in _rows(kd.zoo.dataset("zoo/tasks", "test", rows=24, seed=3)):
        encoded = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids = torch.tensor([encoded["input_ids"]])
        mask = torch.tensor(encoded["assistant_masks"], dtype=torch.bool)[1:]
        with torch.no_grad():
            student, teacher = (models[n](ids).logits[0, :-1][mask] for n in ("student", "teacher"))
        kl += divergence("forward_kl", student, teacher).sum().item()
        agreed += (student.argmax(-1) == teacher.argmax(-1)).sum().item()
        tokens.append(int(mask.sum()))
    assert ours.rows == 24
    assert ours.frame["tokens"].tolist() == tokens
    assert ours.kl == pytest.approx(kl / sum(tokens), rel=1e-4)
    assert ours.agreement == pytest.approx(agreed / sum(tokens))

    itself = lab.evaluate("zoo/tasks", model="teacher", rows=24, seed=3)
    assert itself.kl == pytest.approx(0.0, abs=1e-5)
    assert itself.agreement == 1.0
    assert itself.exact_match > 0.6


def test_plain_text_is_scored_without_answers(lab: kd.Lab) -> None:
    scores = lab.evaluate("zoo/prose", model="student", rows=8, max_length=2048)
    assert np.isnan(scores.exact_match)
    assert scores.kl > 0


def test_rollouts_are_data_for_the_next_run(lab: kd.Lab) -> None:
    data = lab.rollouts("zoo/tasks", model="teacher", rows=16, temperature=0, max_new_tokens=24)
    answers = _rows(data)
    assert len(answers) == 16
    prompts = _rows(kd.zoo.dataset("zoo/tasks", "train", rows=16, seed=0))
    assert [row["messages"][0] for row in answers] == [row["messages"][0] for row in prompts]
    assert sum(row["finished"] for row in answers) > 12
    right = [row["messages"][-1]["content"] in row["answers"] for row in answers]
    assert sum(right) > 10
    run = lab.distill(data=data, steps=2, batch_size=8).wait()
    assert run.state == "finished"
