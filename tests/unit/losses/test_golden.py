"""The losses against values that KDFlow's own code computed (golden/README.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig
from kdflow_lab.losses import Head, cross_entropy, divergence, per_token

GOLDEN = Path(__file__).parent / "golden"
INDEX: dict[str, Any] = json.loads((GOLDEN / "kdflow.json").read_text())
DIVERGENCES = [case for case in INDEX["losses"] if case["loss"] != "cross_entropy"]
CROSS_ENTROPIES = [case for case in INDEX["losses"] if case["loss"] == "cross_entropy"]
CHUNKED = [case for case in DIVERGENCES if case["dtype"] == "float32"]
TRUSTED = {"rtol": 1e-4, "atol": 1e-5}
REFERENCE = {"rtol": 1e-9, "atol": 1e-12}
STEP = {"rtol": 2e-4, "atol": 1e-5}


@cache
def _tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "kdflow.safetensors") | load_file(GOLDEN / "kdflow_steps.safetensors")


def _name(case: dict[str, Any]) -> str:
    parts = [case["id"], case.get("loss"), case.get("kind"), case.get("algorithm")]
    return "-".join(str(part) for part in parts if part)


def _logits(case: dict[str, Any], side: str, dtype: torch.dtype | None = None) -> Tensor:
    """Float[T, V], all positions of the batch under each other, in the stored dtype or `dtype`."""
    logits = _tensors()[f"{case['input']}.{side}_logits"].flatten(0, 1)
    return logits if dtype is None else logits.to(dtype)


def _scalar(case: dict[str, Any], per_token: Tensor) -> Tensor:
    """What KDFlow reduces to: the sum over the mask (or all positions), divided."""
    if case["masked"]:
        per_token = per_token * _tensors()[f"{case['input']}.mask"].flatten()
    return per_token.sum() / case["denominator"]


def _close(ours: Tensor, golden: Tensor, tolerance: dict[str, float]) -> None:
    torch.testing.assert_close(
        ours, golden.reshape(ours.shape), check_dtype=False, rtol=tolerance["rtol"],
        atol=tolerance["atol"],
    )  # fmt: skip


def _reference(case: dict[str, Any]) -> Tensor:
    """The formula in float64; hrl's as it is meant."""
    kind = "intended" if case["loss"] == "hrl" else "ref64"
    return _tensors()[f"{case['id']}.{kind}_per_token"]


def _compare(case: dict[str, Any], student: Tensor, per_token: Tensor) -> None:
    golden = _tensors()
    if not case["trusted"]:
        # bf16 logits: exactly as if they had been lifted first, which KDFlow's are not
        _close(per_token.double(), _reference(case), TRUSTED)
        return
    _close(per_token.float(), golden[f"{case['id']}.per_token"], TRUSTED)
    scalar = _scalar(case, per_token)
    assert scalar.item() == pytest.approx(case["scalar"], rel=1e-4, abs=1e-5)
    scalar.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if (grad := golden.get(f"{case['id']}.grad")) is not None:
        # KDFlow's gradient of bf16 logits is bf16 itself: three digits
        tolerance = TRUSTED if case["dtype"] == "float32" else {"rtol": 8e-3, "atol": 1e-5}
        _close(student.grad.float(), grad.float(), tolerance)


@pytest.mark.parametrize("case", DIVERGENCES, ids=_name)
def test_divergence_is_kdflows(case):
    student = _logits(case, "student").clone().requires_grad_()
    value = divergence(
        case["loss"],
        student,
        _logits(case, "teacher"),
        temperature=case["temperature"],
        **case["params"],
    )
    assert value.dtype == torch.float32
    _compare(case, student, value)


@pytest.mark.parametrize("case", DIVERGENCES, ids=_name)
def test_divergence_in_float64_is_the_formula(case):
    student = _logits(case, "student", torch.float64).requires_grad_()
    teacher = _logits(case, "teacher", torch.float64)
    value = divergence(
        case["loss"], student, teacher, temperature=case["temperature"], **case["params"]
    )
    assert value.dtype == torch.float64
    _close(value, _reference(case), REFERENCE)
    if (grad := _tensors().get(f"{case['id']}.ref64_grad")) is not None:
        _scalar(case, value).backward()
        assert student.grad is not None
        if case["loss"] == "akl" and case["kind"] == "equal":  # the formula's own is NaN
            assert (student.grad.abs() < 1e-12).all()
        else:
            _close(student.grad, grad, {"rtol": 1e-7, "atol": 1e-12})


@pytest.mark.parametrize("case", CHUNKED, ids=_name)
def test_chunked_divergence_is_kdflows(case):
    """Logits as hidden states, identity heads: the walk gives what the plain function gives."""
    student = _logits(case, "student", torch.float32)
    teacher = _logits(case, "teacher", torch.float32)
    head = Head(torch.eye(student.shape[1]))
    found = per_token(
        student, head, teacher, head, torch.zeros(len(student), dtype=torch.int64),
        divergence=case["loss"], temperature=case["temperature"], chunk_tokens=4, **case["params"],
    )  # fmt: skip
    # these ranks are decided by differences that float32 does not hold
    if case["loss"] != "hrl":
        _close(found.kd.double(), _reference(case), TRUSTED)


@pytest.mark.parametrize("case", CROSS_ENTROPIES, ids=_name)
def test_cross_entropy_of_the_sft_loss_is_kdflows(case):
    """Our cross-entropy lives in the chunked loss: logits as hidden states, an identity head."""
    student = _logits(case, "student").clone().requires_grad_()
    labels = _tensors()[f"{case['input']}.labels"].flatten()
    sft = make_algorithm(DistillConfig(algorithm="sft", chunk_tokens=4))
    rows = range(len(labels))
    head = Head(torch.eye(student.shape[1], dtype=student.dtype))
    per_token = torch.stack(
        [
            sft.loss(
                student[i : i + 1], head, None, None, labels[i : i + 1], num_valid_tokens=1
            ).loss
            for i in rows
        ]
    )
    _compare(case, student, per_token)


@pytest.mark.parametrize("case", INDEX["algorithms"], ids=_name)
def test_training_step_is_kdflows(case):
    """Loss, parts and gradients of whole steps, with equal and with padded teacher heads."""
    golden = {
        key.removeprefix(case["id"] + "."): tensor
        for key, tensor in _tensors().items()
        if key.startswith(case["id"] + ".")
    }
    mask = golden["stu_loss_mask"].bool()
    hidden = golden["student_hidden"].clone().requires_grad_()
    weight = golden["student_lm_head"].clone().requires_grad_()
    # the row at position i predicts the token at i + 1
    labels = golden["stu_input_ids"].roll(-1, dims=1)[mask]
    teacher_head = teacher_hidden = None
    student_head = Head(weight)
    if case["algorithm"] == "vanilla_kd":
        teacher_hidden = golden["teacher_hiddens"]
        teacher_head = Head(golden["teacher_lm_head"])
        shared = min(teacher_head.width, student_head.width)
        student_head, teacher_head = student_head.cut(shared), teacher_head.cut(shared)
    algorithm = make_algorithm(
        DistillConfig(
            algorithm=case["algorithm"],
            loss=case["loss"],
            loss_params=case["loss_params"],
            kd_ratio=case["kd_ratio"],
            kd_temperature=case["kd_temperature"],
            chunk_tokens=5,
        )
    )
    output = algorithm.loss(
        hidden[mask], student_head, teacher_hidden, teacher_head, labels,
        num_valid_tokens=golden["avg_micro_batch_token_num"].item(),  # type: ignore[arg-type]
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.item() == pytest.approx(case["result"]["loss"], rel=2e-4)
    if "kd_loss" in case["result"]:
        assert output.kd.item() == pytest.approx(case["result"]["kd_loss"], rel=2e-4)
    if "ce_loss" in case["result"]:
        assert output.ce.item() == pytest.approx(case["result"]["ce_loss"], rel=2e-4)
    assert hidden.grad is not None
    assert weight.grad is not None
    _close(hidden.grad, golden["grad_student_hidden"], STEP)
    _close(weight.grad, golden["grad_student_lm_head"], STEP)


@pytest.mark.parametrize("case", CROSS_ENTROPIES, ids=_name)
def test_cross_entropy_is_kdflows(case):
    student = _logits(case, "student").clone().requires_grad_()
    labels = _tensors()[f"{case['input']}.labels"].flatten()
    _compare(case, student, cross_entropy(student, labels))


def test_the_golden_values_cover_what_ships():
    """All of KDFlow's losses, both algorithms, every kind of logits, a padded teacher head."""
    assert {case["loss"] for case in INDEX["losses"]} == set(
        "kl rkl jsd skl srkl akl tvd hrl top1_ce cross_entropy".split()
    )
    assert {case["algorithm"] for case in INDEX["algorithms"]} == {"vanilla_kd", "sft"}
    assert {case["kind"] for case in INDEX["losses"]} >= {"onehot", "extreme", "equal", "bf16"}
    assert sum(case["trusted"] for case in INDEX["losses"]) == 198
    widths = {
        tuple(
            _tensors()[f"{case['id']}.{side}_lm_head"].shape[0] for side in ("student", "teacher")
        )
        for case in INDEX["algorithms"]
        if case["algorithm"] == "vanilla_kd"
    }
    assert any(student != teacher for student, teacher in widths)
