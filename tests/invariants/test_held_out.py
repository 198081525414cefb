"""Looking at a student between two steps: right figures, and nothing changed by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_out import (
    PROBE_ROWS,
    STEPS,
    Looked,
    both_ways,
    give_dropout,
    in_processes,
    train,
)
from one_step import make_models, make_table

# Each fixture value starts processes that import torch: a minute, more on a busy machine.
pytestmark = pytest.mark.timeout(900)

RANKS = [1, 2]
NEAR = 5e-5
"""Nats between float32 and float64."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A teacher and a student that drops attention weights, so that random state matters."""
    models = make_models(Path(tmp_path_factory.mktemp("models")), tied=True)
    give_dropout(models[1], 0.3)
    return models


@pytest.fixture(scope="module")
def looked(models: tuple[str, str]) -> dict[Any, Looked]:
    """Runs that were looked at, by ranks; and one that runs padded."""
    runs: dict[Any, Looked] = {ranks: in_processes(ranks, train, models, True) for ranks in RANKS}
    runs["padded"] = in_processes(2, train, models, True, False)
    return runs


@pytest.fixture(scope="module")
def left_alone(models: tuple[str, str]) -> dict[int, Looked]:
    return {ranks: in_processes(ranks, train, models, False) for ranks in RANKS}


@pytest.fixture(scope="module")
def naive(models: tuple[str, str], looked: dict[Any, Looked]) -> dict[Any, list[dict[str, Any]]]:
    """All rows by plain `transformers` models in float64, row by row; by run and boundary."""
    from transformers import AutoModelForCausalLM

    table = make_table()
    teacher, student = (AutoModelForCausalLM.from_pretrained(path).double() for path in models)
    with torch.no_grad():
        rows = [torch.from_numpy(table.row(row)[0]).long() for row in range(len(table))]
        teachers = [teacher.eval()(ids[None]).logits[0, :-1] for ids in rows]
        found = {}
        for name, run in looked.items():
            found[name] = []
            for weights in run.weights:
                left_out = student.load_state_dict(
                    {key: value.double() for key, value in weights.items()}, strict=False
                )
                assert left_out.missing_keys in ([], ["lm_head.weight"])  # tied
                students = [student.eval()(ids[None]).logits[0, :-1] for ids in rows]
                found[name].append(_tokens(rows, students, teachers))
    return found


def _tokens(rows: list[Any], students: list[Any], teachers: list[Any]) -> dict[str, Any]:
    """Per-token values by the formulas as they are written."""
    q, p = torch.cat(students).softmax(-1).numpy(), torch.cat(teachers).softmax(-1).numpy()
    labels = torch.cat([ids[1:] for ids in rows]).numpy()
    table = make_table()
    m = (p + q) / 2
    values: dict[str, Any] = {
        "labels": labels,
        "input_ids": torch.cat([ids[:-1] for ids in rows]).numpy(),
        "response": np.concatenate([table.row(row)[1][1:] for row in range(len(table))]) == 1,
        "forward_kl": (p * np.log(p / q)).sum(-1),
        "reverse_kl": (q * np.log(q / p)).sum(-1),
        "jsd": ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2,
        "agreement": p.argmax(-1) == q.argmax(-1),
    }
    for name, probability, side in (("student", q, students), ("teacher", p, teachers)):
        logits = torch.cat(side).numpy()
        values |= {
            f"{name}_entropy": -(probability * np.log(probability)).sum(-1),
            f"{name}_logprob": np.log(probability[np.arange(len(labels)), labels]),
            f"{name}_logit": logits[np.arange(len(labels)), labels],
            f"{name}_logps": np.log(probability),
        }
    return values


@pytest.mark.parametrize("name", [*RANKS, "padded"])
def test_scores_are_those_of_plain_models(
    looked: dict[Any, Looked], naive: dict[Any, list[dict[str, Any]]], name: Any
) -> None:
    table = make_table()
    for by_rank, tokens in zip(looked[name].scores, naive[name], strict=True):
        trained = tokens["response"]
        ce = -tokens["student_logprob"][trained].mean()
        assert by_rank[0] == {
            "rows": len(table),
            "tokens": int(trained.sum()),
            "kl": pytest.approx(tokens["forward_kl"][trained].mean(), rel=1e-5),
            "agreement": pytest.approx(tokens["agreement"][trained].mean(), rel=1e-12),
            "perplexity": pytest.approx(math.exp(ce), rel=1e-5),
            "ce": pytest.approx(ce, rel=1e-5),
        }
        assert all(score == by_rank[0] for score in by_rank)
    kls = [by_rank[0]["kl"] for by_rank in looked[name].scores]
    assert len(set(kls)) == STEPS + 1, "the student did not change: the test says nothing"


def test_two_ranks_score_as_one(looked: dict[Any, Looked]) -> None:
    """Before the first step; later, dropout makes other students of them."""
    ours, theirs = looked[2].scores[0][0], looked[1].scores[0][0]
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", [*RANKS, "padded"])
def test_probes_hold_every_token_as_plain_models_see_it(
    looked: dict[Any, Looked], naive: dict[Any, list[dict[str, Any]]], name: Any
) -> None:
    ends = np.concatenate([[0], np.cumsum(make_table().lengths[:PROBE_ROWS] - 1)])
    for probes, tokens in zip(looked[name].probes, naive[name], strict=True):
        found = dict(probes)
        expected = {key: values[: ends[-1]] for key, values in tokens.items()}
        del expected["agreement"]
        expected |= {"cu_seqlens": ends, "row_index": np.arange(PROBE_ROWS)}
        logps = {model: expected.pop(f"{model}_logps") for model in ("student", "teacher")}
        for model, other in (("student", "teacher"), ("teacher", "student")):
            ours = {key: found.pop(f"{model}_{key}") for key in ("rank", "topk_ids")}
            expected |= _check_order(ours, logps[model], tokens, model)
            listed = ours["topk_ids"].astype(np.int64)
            expected[f"{other}_logprobs_of_{model}_topk"] = np.take_along_axis(
                logps[other], listed, -1
            )
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            if np.issubdtype(values.dtype, np.floating):
                assert found[key].dtype == np.float32
                np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=NEAR, err_msg=key)
            else:
                assert found[key].dtype == (np.bool_ if key == "response" else np.int32)
                np.testing.assert_array_equal(found[key], values, err_msg=key)


def _check_order(
    ours: dict[str, Any], logps: np.ndarray, tokens: dict[str, Any], model: str
) -> dict[str, np.ndarray]:
    """Check ranks and ids, of which float32 may swap two that are as likely as each other.

    Returns:
        The log-probabilities of the listed tokens.
    """
    label = tokens[f"{model}_logprob"][: len(logps), None]
    highest = 1 + (logps > label + NEAR).sum(-1)
    lowest = (logps > label - NEAR).sum(-1)  # counts the label itself
    assert ours["rank"].dtype == ours["topk_ids"].dtype == np.int32
    assert np.all((highest <= ours["rank"]) & (ours["rank"] <= lowest))
    assert np.mean(highest == lowest) > 0.99, "most ranks are certain"
    listed = np.take_along_axis(logps, ours["topk_ids"].astype(np.int64), -1)
    np.testing.assert_allclose(listed, -np.sort(-logps, axis=-1)[:, :10], atol=NEAR)
    assert all(len(set(ids)) == 10 for ids in ours["topk_ids"].tolist())
    return {f"{model}_topk_logprobs": listed}


@pytest.mark.parametrize("ranks", RANKS)
def test_looking_changes_nothing(
    looked: dict[Any, Looked], left_alone: dict[int, Looked], ranks: int
) -> None:
    """Losses bit for bit, with the ring full of later micro-batches and dropout in the student."""
    assert looked[ranks].losses == left_alone[ranks].losses
    assert len(set(looked[ranks].losses)) == STEPS
    assert all(looked[ranks].in_flight[:STEPS])
    assert looked[ranks].changed == []


@pytest.mark.parametrize("ranks", RANKS)
def test_the_teacher_is_asked_once(looked: dict[Any, Looked], ranks: int) -> None:
    assert looked[ranks].teacher_calls == looked[ranks].expected_calls


@pytest.mark.parametrize("ranks", RANKS)
def test_one_row_and_no_teacher(
    looked: dict[Any, Looked], naive: dict[Any, list[dict[str, Any]]], ranks: int
) -> None:
    tokens, length = naive[ranks][-1], int(make_table().lengths[0]) - 1
    trained = np.flatnonzero(tokens["response"][:length])
    one = looked[ranks].others["one row"]
    assert (one["rows"], one["tokens"]) == (1, len(trained))
    assert one["kl"] == pytest.approx(tokens["forward_kl"][trained].mean(), rel=1e-5)
    alone = looked[ranks].others["sft"]
    whole = looked[ranks].scores[-1][0]
    assert alone == {**whole, "kl": None, "agreement": None}


@pytest.mark.parametrize("ranks", RANKS)
def test_all_ranks_are_told_of_one_that_is_refused(looked: dict[Any, Looked], ranks: int) -> None:
    """None hangs, and the next session (of the single row) is served."""
    for told in looked[ranks].others["refused"]:
        assert told.startswith("Held-out rows cannot be scored. Rank ")
        assert f"Rank {ranks - 1}: The teacher refused rank {ranks - 1}: The slots" in told


@pytest.mark.parametrize("ranks", RANKS)
def test_a_live_student_scores_as_lab_evaluate_scores_it(ranks: int) -> None:
    evaluated, live = in_processes(ranks, both_ways)
    for name in ("rows", "kl", "agreement", "perplexity"):
        assert live[name] == pytest.approx(evaluated[name], rel=1e-6), name
