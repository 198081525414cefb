"""`Lab.inspect` and a run's probes on real engines: the numbers, the very tokens, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdflow_lab as kd
from kdflow_lab.errors import DataError, RunError
from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.evaluate.probe_file import read_file
from kdflow_lab.losses import divergence

SMALL = {"data": "zoo/tasks", "rows": 64, "batch_size": 8, "lr": 1e-3, "eval_rows": 8}
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
"""Nats, between a packed and a plain forward pass in float32."""
TEXT = "import sys\n\nIt is 14 September, ï»¿\u202eand \U0001f469 agrees."


def _rows(count: int = 3) -> list[dict[str, Any]]:
    from kdflow_lab.zoo.tasks import tasks

    return [dict(row) for row in tasks("test", rows=count, kinds=["greet", "sort", "pick"])]


def _plain(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    path = kd.zoo.path(name)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(kd.zoo.path("zoo/student"))


@pytest.fixture(scope="module")
def teacher() -> Any:
    return _plain("zoo/teacher")


def _source(lens: Any) -> Inspection:
    assert isinstance(lens.source, Inspection)
    return lens.source


def _equal_plain(found: Inspection, rows: list[list[int]], student: Any, teacher: Any) -> None:
    """Hold everything against plain `transformers` models and `kd.losses.divergence`."""
    assert [one.ids.tolist() for one in found.rows] == rows
    for row, ids in zip(found.rows, rows, strict=True):
        with torch.no_grad():
            logits = {
                "student": student(torch.tensor([ids])).logits[0, :-1],
                "teacher": teacher(torch.tensor([ids])).logits[0, :-1],
            }
        wanted = {
            name: divergence(name, logits["student"], logits["teacher"])
            for name in ("forward_kl", "reverse_kl", "jsd")
        }
        label = torch.tensor(ids[1:])[:, None]
        for model, other in (("student", "teacher"), ("teacher", "student")):
            logp = logits[model].log_softmax(-1)
            arrays = {
                name: array[row.places]
                for name, array in found.arrays.items()
                if len(array) == len(found)
            }
            listed = torch.from_numpy(arrays[f"{model}_topk_ids"]).long()
            others = torch.from_numpy(arrays[f"{other}_topk_ids"]).long()
            wanted |= {
                f"{model}_entropy": -(logp.exp() * logp).sum(-1),
                f"{model}_logprob": logp.gather(1, label)[:, 0],
                f"{model}_logit": logits[model].gather(1, label)[:, 0],
                f"{model}_topk_logprobs": logp.topk(listed.shape[1]).values,
                f"{model}_logprobs_of_{other}_topk": logp.gather(1, others),
            }
            torch.testing.assert_close(
                logp.gather(1, listed), wanted[f"{model}_topk_logprobs"], rtol=1e-5, atol=1e-4
            )
            rank = 1 + (logp > logp.gather(1, label)).sum(-1)
            assert (rank.numpy() == arrays[f"{model}_rank"]).mean() > 0.98  # ties may swap
        for name, values in wanted.items():
            np.testing.assert_allclose(
                found.arrays[name][row.places], values.numpy(), **NEAR, err_msg=name
            )


def test_numbers_are_those_of_plain_models(lab: kd.Lab, tokenizer: Any, teacher: Any) -> None:
    rows = _rows()
    found = _source(lab.inspect(rows, top=7, quantity="jsd"))
    encoded = [
        tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        for row in rows
    ]
    lengths = [max(np.flatnonzero(one["assistant_masks"])) + 1 for one in encoded]
    ids = [one["input_ids"][:length] for one, length in zip(encoded, lengths, strict=True)]
    _equal_plain(found, ids, _plain("zoo/student"), teacher)
    masks = [one["assistant_masks"][1:length] for one, length in zip(encoded, lengths, strict=True)]
    assert found.arrays["response"].tolist() == [bool(one) for mask in masks for one in mask]
    assert found.arrays["student_topk_ids"].shape == (len(found), 7)
    assert (found.name, found.step, found.note) == ("student", None, "")
    # every id has its text, and together they are the rows
    named = {
        int(one) for name in ("student_topk_ids", "labels") for one in found.arrays[name].ravel()
    }
    assert named <= found.texts.keys()
    assert "".join(map(found.text, found.rows[0].ids)) == tokenizer.decode(ids[0])


def test_every_token_of_a_text_is_looked_at(lab: kd.Lab, tokenizer: Any, teacher: Any) -> None:
    """One text and two students: one of them has nothing to do."""
    found = _source(lab.inspect([TEXT]))
    _equal_plain(found, [tokenizer(TEXT)["input_ids"]], _plain("zoo/student"), teacher)
    assert found.arrays["response"].all()


def test_students_share_the_rows_as_one_alone_has_them(lab: kd.Lab, lab_of_one: kd.Lab) -> None:
    rows = _rows(5)
    shared, alone = (_source(each.inspect(rows)).arrays for each in (lab, lab_of_one))
    assert shared.keys() == alone.keys()
    for name, values in alone.items():
        assert shared[name].dtype == values.dtype
        if "topk_ids" not in name and "rank" not in name:
            np.testing.assert_allclose(shared[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_sampled_tokens_are_taken_as_they_are(
    lab_of_one: kd.Lab, tokenizer: Any, teacher: Any
) -> None:
    """The word in single letters, which the tokenizer would never write so."""
    letters = [tokenizer(letter)["input_ids"][0] for letter in "Paris"]
    assert letters != tokenizer("Paris")["input_ids"]
    prompt = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    odd = [letters[0], *letters]
    lines = [
        {"prompt": prompt, "ids": letters, "text": "something else"},
        {"prompt": "never read", "prompt_ids": odd, "ids": letters[:1]},
    ]
    found = _source(lab_of_one.inspect(lines))
    _equal_plain(found, [prompt_ids + letters, odd + letters[:1]], _plain("zoo/student"), teacher)
    first, second = (found.arrays["response"][row.places] for row in found.rows)
    assert first.tolist() == [False] * (len(prompt_ids) - 1) + [True] * len(letters)
    assert second.tolist() == [False] * len(letters) + [True]
    with pytest.raises(DataError, match="Rollout 0 has token id 999999999"):
        lab_of_one.inspect([{**lines[0], "ids": [999_999_999]}])
    with pytest.raises(DataError, match="more than max_length=4"):
        lab_of_one.inspect(lines, max_length=4)


def test_a_runs_own_samples_have_the_divergence_that_it_wrote_down(lab_of_one: kd.Lab) -> None:
    run = lab_of_one.distill(
        **{**SMALL, "batch_size": 4}, on_policy=True, steps=1, max_new_tokens=12, log_rollouts=4
    ).wait()
    lines = [json.loads(line) for line in (run.path / "rollouts.jsonl").open()]
    lines = [line for line in lines if line["version"] == 0 and line["kl"]]
    assert lines
    found = _source(lab_of_one.inspect(lines, model="student"))
    for row, line in zip(found.rows, lines, strict=True):
        answer = row.places.stop - len(line["ids"])
        assert row.ids[-len(line["ids"]) :].tolist() == line["ids"]
        kl = found.values("forward_kl")[answer : row.places.stop]
        np.testing.assert_allclose(kl, line["kl"], rtol=1e-3, atol=2e-4)


def test_a_run_is_looked_at_with_its_newest_weights(
    lab: kd.Lab, tokenizer: Any, teacher: Any
) -> None:
    run = lab.distill(**SMALL, steps=2).wait()
    rows = [tokenizer(TEXT)["input_ids"]]
    first = _source(lab.inspect([TEXT], model=run))
    assert (first.name, first.step) == (run.name, 2)
    _equal_plain(first, rows, run.student(), teacher)
    lab.resume(run, steps=4).wait()
    later = _source(lab.inspect([TEXT], model=run))
    assert later.step == 4
    _equal_plain(later, rows, run.student(), teacher)
    same = _source(lab.inspect([TEXT], model="teacher"))
    assert np.abs(same.values("forward_kl")).max() < 1e-5


def test_mistakes_are_told_and_leave_the_lab_usable(lab: kd.Lab) -> None:
    with pytest.raises(DataError, match="more than max_length=8"):
        lab.inspect(["many words " * 50], max_length=8)
    busy = lab.distill(**SMALL, steps=100_000)
    try:
        with pytest.raises(RunError, match=r"is (running|starting)"):
            lab.inspect(["a text"], model=busy)
    finally:
        busy.stop()
        busy.wait(timeout=60)
    assert len(_source(lab.inspect(["a text of words"])))


# -- probes of a run ------------------------------------------------------------------------------


def _probed(run: kd.Run) -> list[int]:
    return [event["step"] for event in run.events if event["event"] == "probes"]


def test_probes_are_written_at_the_start_regularly_and_at_the_end(
    lab: kd.Lab, tokenizer: Any, teacher: Any
) -> None:
    run = lab.distill(**SMALL, steps=7, probe_every=3, probe_rows=2).wait()
    assert _probed(run) == run.probes.steps == [0, 3, 6, 7]
    found = run.inspect(0).inspection
    assert found is not None and found.step == 0
    rows = [row.ids.tolist() for row in found.rows]
    assert len(rows) == 2
    _equal_plain(found, rows, _plain("zoo/student"), teacher)
    assert "".join(map(found.text, rows[0])) == tokenizer.decode(rows[0])
    _equal_plain(run.probes.at(7), rows, run.student(), teacher)
    # texts travel in the file
    written = read_file(Path(run.path) / "probes" / "7.safetensors")
    ids = np.unique(np.concatenate([written.arrays["labels"], written.arrays["input_ids"]]))
    assert set(ids.tolist()) <= written.texts.keys()
    # a resumed run goes on from its checkpoint, whose probes are there, and ends with the last
    lab.resume(run, steps=10).wait()
    assert _probed(run) == run.probes.steps == [0, 3, 6, 7, 9, 10]
    # a fork has a directory of its own
    fork = run.fork(step=10, steps=11).wait()
    assert fork.probes.steps == [11]
