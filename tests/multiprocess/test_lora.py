"""LoRA students on real engines: small checkpoints, 1 or 2 ranks, forks, exports, rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import SMALL, events, reach, same, state
from faults import whole as assert_whole

import kdflow_lab as kd
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.jsonl import JsonlTail

STEPS = 20
LORA: dict[str, Any] = {**SMALL, "lora_r": 8, "lr": 4e-3}
HEAD = ["all-linear", "lm_head"]


def _bytes(run: kd.Run) -> int:
    return events(run, "checkpoint")[-1]["bytes"]


@pytest.fixture(scope="module")
def run(lab: kd.Lab) -> kd.Run:
    """A LoRA run on two students; nobody disturbs it."""
    return lab.distill(**LORA, steps=STEPS).wait(60)


@pytest.fixture(scope="module")
def full(lab: kd.Lab) -> kd.Run:
    """A step of all weights."""
    return lab.distill(**SMALL, steps=1).wait(60)


def test_adapters_alone_are_trained_and_saved(full: kd.Run, run: kd.Run) -> None:
    assert_whole(run)
    (started,) = events(run, "started")
    model = run.student()
    all_of_them = sum(one.numel() for one in model.parameters())
    assert started["parameters"] == all_of_them + started["trainable_parameters"]
    # 8 * (inputs + outputs) of 7 layers in each of 3 blocks; hidden 128, inner 288
    by_hand = 3 * 8 * (4 * (128 + 128) + 3 * (128 + 288))
    assert started["trainable_parameters"] == by_hand
    assert run.config["lora_alpha"] == 16.0

    losses = run.metrics["loss"]
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]
    (said,) = events(full, "started")
    assert said["parameters"] == said["trainable_parameters"] == all_of_them
    assert _bytes(run) < 0.25 * _bytes(full)


def test_one_student_learns_what_two_learn(lab_of_one: kd.Lab, run: kd.Run) -> None:
    alone = lab_of_one.distill(**LORA, steps=8).wait(60)
    for name in ("loss", "kd", "ce", "tokens"):
        ours, theirs = alone.metrics[name], run.metrics[name][:8]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_stopped_run_goes_on_bit_for_bit(lab: kd.Lab, run: kd.Run) -> None:
    other = lab.distill(**LORA, steps=STEPS)
    reach(other, 3)
    other.stop()
    state(other, "stopped")
    other.resume().wait(60)
    assert len(events(other, "started")) == 2
    same(other, run)
    assert_whole(other)


def test_fork_goes_on_with_the_adapters_and_may_not_change_them(run: kd.Run) -> None:
    fork = run.fork(steps=STEPS + 3, lr=1e-3).wait(60)
    (started,) = events(fork, "started")
    assert (started["from_step"], fork.config["lora_r"]) == (STEPS, 8)
    assert_whole(fork)
    changes: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8.0, "lora_target_modules": ["q_proj"]}
    for name, value in changes.items():
        with pytest.raises(ConfigError, match=f"{name} is .* goes on with its parent's weights"):
            run.fork(steps=STEPS + 3, **{name: value})


def test_exports_load_elsewhere_and_looks_see_the_merged_student(
    lab: kd.Lab, run: kd.Run, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(run.export(tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained(kd.zoo.path("zoo/student"), dtype=torch.float32)
    written = run.export(tmp_path / "adapter", adapter=True)
    adapted = PeftModel.from_pretrained(base, str(written))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        first, second = (one(input_ids=ids).logits for one in (merged, adapted))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    sizes = [sum(f.stat().st_size for f in one.glob("*.safetensors")) for one in tmp_path.iterdir()]
    assert min(sizes) < max(sizes) / 10

    before, after = (
        lab.evaluate("zoo/tasks", rows=16, generate=False, model=one) for one in ("student", run)
    )
    assert after.kl < 0.8 * before.kl
    text = ["It is 14 September."]
    sources: list[Any] = [lab.inspect(text, model=one).source for one in ("student", run)]
    plain, learnt = (source.values("forward_kl").mean() for source in sources)
    assert abs(plain - learnt) > 1e-3
    sandbox = lab.sandbox(text, ["forward_kl"], model=run)
    assert len(sandbox.frame)


def test_only_a_lora_run_has_an_adapter_to_export(full: kd.Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained all weights of its student: it has no adapter"):
        full.export(tmp_path / "adapter", adapter=True)
    assert not (tmp_path / "adapter").exists()


def test_layer_that_the_student_has_not_fails_the_run_in_words(lab: kd.Lab) -> None:
    run = lab.distill(**{**LORA, "lora_target_modules": ["q_prog"]}, steps=2)
    with pytest.raises(RunError, match=r"names 'q_prog', .* Did you mean 'q_proj'\?"):
        run.wait(60)


def test_step_of_a_ruined_run_is_replayed_with_the_merged_student(lab: kd.Lab) -> None:
    ruined = lab.distill(**{**LORA, "lr": 1e30, "checkpoint_every": None}, steps=3).wait(60)
    assert [event["step"] for event in events(ruined, "skipped")] == [2, 3]
    replayed = ruined.replay(2)
    assert (replayed.weights_of, replayed.taken) == (3, 0)  # the very weights that met the step
    assert not any(row.student_hidden for row in replayed.rows)


def test_on_policy_samples_come_from_the_adapted_student(lab: kd.Lab) -> None:
    """The head is tied and adapted; a run whose head is tied again comes after it."""
    options = {
        **LORA,
        "on_policy": True,
        "loss": "reverse_kl",
        "max_new_tokens": 8,
        "log_rollouts": 8,
    }
    looks = {"eval_every": 4, "eval_rows": 8, "eval_generate": True, "probe_every": 4}
    run = lab.distill(**options, **looks, lora_target_modules=HEAD, steps=4).wait(120)
    for name in ("evaluated", "probes"):
        assert [event["step"] for event in events(run, name)] == [0, 4]
    (said,) = (e["message"] for e in events(run, "warning") if "tied" in e["message"])
    assert "the adapter changes the head alone" in said
    _agrees(run)
    merged = run.student()
    assert not merged.config.tie_word_embeddings
    shift = merged.lm_head.weight - merged.model.embed_tokens.weight
    assert shift.abs().max() > 1e-4

    _agrees(lab.distill(**options, steps=2).wait(120))


def _agrees(run: kd.Run) -> None:
    """Every step learns from what its own weights wrote, and finds it as likely as they did."""
    assert_whole(run)
    lines = JsonlTail(run.path / "rollouts.jsonl").read()
    for record in run.records:
        mine = [line for line in lines if line["step"] == record["step"] and not line.get("pinned")]
        logprobs = [value for line in mine for value in line["logprobs"]]
        assert record["staleness"] == 0
        assert record["tokens"] == len(logprobs)
        assert record["ce"] == pytest.approx(-np.mean(logprobs), abs=1e-4)
    assert run.records[-1]["grad_norm"] > 0
