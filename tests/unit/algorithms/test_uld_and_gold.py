"""ULD and GOLD against TRL's own values, and against the corrected ones where TRL's are off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cross_golden import CASES, Rows, pair_of, rows_of, tensors
from cross_toys import algorithm
from torch import Tensor

from kdflow_lab.align.pairing import Pairing
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import LossOutput

BEGINS_WITHOUT_A_ROW = ("g09", "g27")
HOLES_AND_CUTS = ("g11", "g12", "g13")
MATCHED_BY_SPELLING = ("g41",)
TRL = [
    name
    for name, one in CASES.items()
    if one["skip_student_eos"]
    and name not in (*BEGINS_WITHOUT_A_ROW, *HOLES_AND_CUTS, *MATCHED_BY_SPELLING)
]
"""What our variant of TRL does not copy: it takes whole answers without their last token."""


def _pair(case: dict[str, Any]) -> TokenizerPair:
    """The vocabularies; made up to give the matched ids where a case has no spellings."""
    if case.get("texts"):
        return pair_of(case)
    golden, sides = tensors(), []
    for number, side in enumerate(("teacher", "student")):
        width = golden[f"{case['id']}.{side}_logits"].shape[-1]
        spelled = [f"{side}{token}".encode() for token in range(width)]
        for together, ids in enumerate(case.get("matched_pairs", ())):
            spelled[ids[number]] = f"both{together}".encode()
        sides.append(Vocabulary(tuple(spelled), {}))
    return TokenizerPair(*sides)


def _params(case: dict[str, Any], **more: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"skip_eos": case["skip_student_eos"], **more}
    if case["hybrid"]:
        params["beta"] = float(case["beta"])
        if case.get("matched_weight") is not None:
            params["matched_weight"] = case["matched_weight"]
            params["unmatched_weight"] = case["unmatched_weight"]
    return params


def _tempered(case: dict[str, Any], given: Rows) -> tuple[Tensor, Tensor]:
    """TRL has a temperature for each side, we have one: divide before."""
    return (
        given.student / case["student_temperature"],
        given.teacher / case["teacher_temperature"],
    )


def _of_sample(
    given: Rows, hidden: tuple[Tensor, Tensor], sample: int, unplaced: int | None = None
) -> dict[str, Any]:
    """One answer; tokens `unplaced` of both sides have no place."""
    whole = given.pairing
    if unplaced is not None:
        whole = replace(
            whole,
            student_end=np.where(
                given.labels.numpy() == unplaced, whole.student_start, whole.student_end
            ),
            teacher_end=np.where(
                whole.teacher_labels == unplaced, whole.teacher_start, whole.teacher_end
            ),
        )
    ours, theirs = whole.student_sample == sample, whole.teacher_sample == sample
    pairing = Pairing(
        whole.student_start[ours], whole.student_end[ours], whole.teacher_start[theirs],
        whole.teacher_end[theirs], whole.student_sample[ours], whole.teacher_sample[theirs],
        whole.teacher_labels[theirs],
    )  # fmt: skip
    heads = given.heads
    return {
        "student_hidden": hidden[0][torch.from_numpy(ours)],
        "student_head": heads[0],
        "teacher_hidden": hidden[1][torch.from_numpy(theirs)],
        "teacher_head": heads[1],
        "labels": given.labels[torch.from_numpy(ours)],
        "pairing": pairing,
    }


@pytest.mark.parametrize("name", CASES)
def test_corrected_values_of_every_row(name: str) -> None:
    case = CASES[name]
    given = rows_of(case)
    hidden = _tempered(case, given)
    one = algorithm(case["algorithm"], _pair(case), _params(case), kd_ratio=1.0)
    per_sample = case["corrected_per_position"]
    with_rows = sum(bool(values) for values in per_sample)
    total = torch.zeros((), dtype=torch.float64)
    for sample, values in enumerate(per_sample):
        # without spellings no id is the end by its role: leave it out by its place
        end = None if case.get("texts") or not case["skip_student_eos"] else case["student_eos"]
        of = _of_sample(given, hidden, sample, end)
        output: LossOutput = one.loss(**of, num_valid_tokens=1)
        assert output.kd.item() == pytest.approx(sum(values), rel=2e-5, abs=1e-6)
        assert output.extra["aligned"].item() == len(values)
        if values:  # as the stored values are reduced: mean of means
            total = total + output.loss * case["kd_weight"] / (len(values) * with_rows)
    if case["ce_weight"]:
        return
    assert total.item() == pytest.approx(case["corrected_loss"], rel=2e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(total, given.student)
    golden = tensors()
    full = golden[f"{name}.trl_grad" if case["trusted"] else f"{name}.corrected_grad"]
    torch.testing.assert_close(
        given.scattered(gradient, full.shape).float(), full, rtol=2e-4, atol=2e-6
    )


def _raw_matches(case: dict[str, Any], pair: TokenizerPair) -> TokenizerPair:
    """TRL matches spellings: ends of another spelling, and marked spaces, do not match."""
    if not case.get("student_vocab"):
        return pair
    sides = []
    for side in ("teacher", "student"):
        spelled = tuple(one.encode() for one in case[f"{side}_vocab"])
        sides.append(Vocabulary(spelled, {}))
    return TokenizerPair(*sides)


@pytest.mark.parametrize("name", TRL)
def test_trls_own_values(name: str) -> None:
    case = CASES[name]
    given = rows_of(case)
    hidden = _tempered(case, given)
    more = {
        "variant": "trl",
        "strategy": case["strategy"],
        "align": "spans" if case["extended"] else "position",
    }
    params = _params(case, **more)
    one = algorithm(case["algorithm"], _raw_matches(case, _pair(case)), params, kd_ratio=1.0)
    samples = len(tensors()[f"{name}.student_labels"])
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(samples):
        of = _of_sample(given, hidden, sample)
        output = one.loss(**of, num_valid_tokens=1)
        groups = _num_groups(case, of, sample)
        total = total + output.loss / (groups * samples)
    if case["ce_weight"]:
        expected = sum(map(np.mean, case["corrected_per_position"])) / samples
        assert total.item() == pytest.approx(expected, rel=2e-5)
        return
    assert total.item() == pytest.approx(case["trl_loss"], rel=2e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(total, given.student)
    full = tensors()[f"{name}.trl_grad"]
    torch.testing.assert_close(
        given.scattered(gradient, full.shape).float(), full, rtol=2e-4, atol=2e-6
    )


def _num_groups(case: dict[str, Any], of: dict[str, Any], sample: int) -> int:
    if case.get("groups_trl"):
        return len(case["groups_trl"][sample]["student"])
    pairing = of["pairing"]
    return min(len(pairing.student_start), len(pairing.teacher_start)) - 1


def test_one_weight_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="both or neither"):
        algorithm("gold", params={"matched_weight": 1.0})


def test_a_loss_of_ones_own_is_refused() -> None:
    for name in ("uld", "gold", "alm"):
        with pytest.raises(ConfigError, match="loss of its own"):
            algorithm(name, loss="jsd")


def test_nothing_in_common_is_an_error() -> None:
    case = CASES["g23"]
    pair = pair_of(case)
    apart = TokenizerPair(
        replace(pair.teacher, roles={}),
        Vocabulary(tuple(f"#{n}".encode() for n in range(len(pair.student)))),
    )
    given = rows_of(case)
    of = _of_sample(given, (given.student, given.teacher), 0)
    for name in ("gold", "simple_ctkd"):
        with pytest.raises(ConfigError, match="share no token"):
            algorithm(name, apart).loss(**of, num_valid_tokens=1)
