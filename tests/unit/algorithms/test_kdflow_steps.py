"""`simple_ctkd` and `dskd` against training steps of KDFlow's own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cross_golden import STEPS, Step, step_of, step_pair, tensors
from torch import Tensor

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig

CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-5}
CTKD = [name for name, one in STEPS.items() if one["algorithm"] == "simple_ctkd"]
DUAL = [name for name, one in STEPS.items() if one["algorithm"] == "dskd"]


def _algorithm(name: str, **changes: Any) -> Any:
    kd = STEPS[name]["kd"]
    options = {
        "algorithm": STEPS[name]["algorithm"],
        "loss": kd["kd_loss_fn"],
        "kd_ratio": kd["kd_ratio"],
        "kd_temperature": kd["kd_temperature"],
        "chunk_tokens": 5,
        **changes,
    }
    one: Any = make_algorithm(DistillConfig(**options))
    one.meet(step_pair(name))
    return one


def _loss(one: Any, of: Step, method: str = "loss") -> Any:
    return getattr(one, method)(
        of.student, of.student_head, of.teacher, of.teacher_head, of.labels,
        num_valid_tokens=len(of.labels), pairing=of.pairing,
    )  # fmt: skip


def _compare_gradients(name: str, of: Step, loss: Tensor, scale: float) -> None:
    golden = tensors()
    hidden, head = torch.autograd.grad(loss * scale, [of.student, of.student_head.weight])
    full = torch.zeros_like(golden[f"{name}.grad_student_hidden"])
    full[of.mask] = hidden
    torch.testing.assert_close(full, golden[f"{name}.grad_student_hidden"], **CLOSE)
    torch.testing.assert_close(head, golden[f"{name}.grad_student_lm_head"], **CLOSE)


@pytest.mark.parametrize("name", CTKD)
def test_simple_ctkd(name: str) -> None:
    of, wanted = step_of(name), STEPS[name]["result"]
    # KDFlow divides by the mean of the global batch's micro-batches
    scale = len(of.labels) / tensors()[f"{name}.avg_micro_batch_token_num"].item()
    output = _loss(_algorithm(name), of)
    assert output.kd.item() * scale == pytest.approx(wanted["kd_loss"], rel=2e-4)
    assert output.loss.item() * scale == pytest.approx(wanted["loss"], rel=2e-4)
    assert output.extra["aligned"].item() == pytest.approx(wanted["align_ratio"])
    _compare_gradients(name, of, output.loss, scale)


def _started(name: str, of: Step, **changes: Any) -> Any:
    one = _algorithm(name, **changes)
    projectors = one.beside(of.student.shape[1], of.teacher.shape[1])
    one.init_beside(of.student_head, of.teacher_head)
    wanted = tensors()[f"{name}.init_t2s_weight"]
    torch.testing.assert_close(projectors.to_student.data, wanted, rtol=1e-3, atol=1e-4)
    return one


@pytest.mark.parametrize("name", DUAL)
def test_dskd(name: str) -> None:
    """KDFlow divides each term by another count: multiplied back here."""
    of, wanted = step_of(name), STEPS[name]["result"]
    tokens = len(of.labels)
    per_batch = tokens / tensors()[f"{name}.avg_micro_batch_token_num"].item()
    one = _started(name, of, kd_ratio=1.0)
    parts, labels = (_loss(_started(name, of, kd_ratio=r), of, "parts") for r in (1.0, 0.0))
    parts = _loss(one, of, "parts")
    kept, agreeing = parts.counts
    same = step_pair(name).same
    of_kept = per_batch if same else tokens / kept
    of_agreeing = tokens / agreeing
    t2s_kd = parts.labels_and_t2s.loss * of_agreeing
    t2s_ce, s2t_kd = parts.t2s_ce * of_kept, parts.s2t_kd * of_kept
    assert t2s_ce.item() == pytest.approx(wanted["t2s_ce_loss"], rel=2e-4)
    assert t2s_kd.item() == pytest.approx(wanted["t2s_kd_loss"], rel=2e-4)
    assert s2t_kd.item() == pytest.approx(wanted["s2t_kd_loss"], rel=2e-4)
    assert agreeing / kept == pytest.approx(wanted["t2s_agreement"])
    ratio = STEPS[name]["kd"]["kd_ratio"]
    loss = (1 - ratio) * labels.labels_and_t2s.loss * per_batch
    loss = loss + ratio * (t2s_kd + t2s_ce + s2t_kd)
    assert loss.item() == pytest.approx(wanted["loss"], rel=2e-4)
    (projector,) = torch.autograd.grad(loss, one.projectors.to_student, retain_graph=True)
    torch.testing.assert_close(projector, tensors()[f"{name}.grad_t2s_weight"], **CLOSE)
    _compare_gradients(name, of, loss, 1.0)
    whole = _loss(_started(name, of, kd_ratio=1.0), of)
    assert whole.kd.item() == pytest.approx(sum(
        one.item() for one in (parts.t2s_ce, parts.s2t_kd, parts.labels_and_t2s.kd)
    ), rel=1e-5)  # fmt: skip
