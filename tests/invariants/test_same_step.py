"""The same loss and gradient however a step is split over ranks, micro-batches and chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from one_step import Case, Step, assert_same, make_models, steps

# The fixtures take all the steps, on one rank and on two: a minute each, more on a busy machine.
pytestmark = pytest.mark.timeout(900)

WHOLE = Case()
WAYS = {
    "micro-batch 1": Case(micro_batch_rows=1),
    "micro-batch 4": Case(micro_batch_rows=4),
    "micro-batch 8": Case(micro_batch_rows=8),
    "padded": Case(packing=False),
    "padded micro-batch 4": Case(packing=False, micro_batch_rows=4),
    "chunk 1": Case(chunk_tokens=1),
    "chunk 7": Case(chunk_tokens=7),
    "ring": Case(ring=True),
    "ring micro-batch 1": Case(ring=True, micro_batch_rows=1),
    "activation checkpointing": Case(activation_checkpointing=True),
}
OTHERS = {
    "reverse_kl": Case(loss="reverse_kl", kd_ratio=1.0),
    "sft": Case(sft=True),
    "one row": Case(batch_size=1),
}
BF16 = Case(ring=True, precision="bfloat16")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def taken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """All cases on one rank and on two, keyed by (ranks, name)."""
    models = make_models(Path(tmp_path_factory.mktemp("models")), tied=request.param)
    cases = {"whole": WHOLE, **WAYS, **OTHERS, "bf16": BF16}
    return {
        (ranks, name): step
        for ranks in (1, 2)
        for name, step in zip(cases, steps(ranks, models, list(cases.values())), strict=True)
    }


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", WAYS)
def test_step_is_the_same(taken: dict[tuple[int, str], Step], ranks: int, name: str) -> None:
    assert_same(taken[ranks, name], taken[1, "whole"])


@pytest.mark.parametrize("name", ["whole", *OTHERS])
def test_two_ranks_equal_one(taken: dict[tuple[int, str], Step], name: str) -> None:
    assert_same(taken[2, name], taken[1, name])


def test_the_cases_are_what_they_say(taken: dict[tuple[int, str], Step]) -> None:
    """Ranks had unequal tokens, one had none, the other losses differ, the ring was the ring."""
    first, second = taken[2, "whole"].tokens_by_rank
    assert first != second
    assert 0 in taken[2, "one row"].tokens_by_rank
    losses = {name: taken[1, name].loss for name in ("whole", *OTHERS)}
    assert len({round(loss, 3) for loss in losses.values()}) == len(losses)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["ring", "bf16"])
def test_the_teachers_rows_go_from_the_slot_into_the_product(
    taken: dict[tuple[int, str], Step], ranks: int, name: str
) -> None:
    """After the one write: no copy, no cast. The only reader of the slot is the head's product."""
    assert taken[ranks, name].ring_operations in (["aten::mm"], ["aten::t", "aten::mm"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_compute_is_near_float32(taken: dict[tuple[int, str], Step], ranks: int) -> None:
    """Parameters are gathered in bfloat16, the loss is summed and gradients reduced in float32."""
    ours, theirs = taken[ranks, "bf16"], taken[1, "whole"]
    assert ours.loss != theirs.loss
    assert ours.loss == pytest.approx(theirs.loss, rel=2e-2)
    for name, expected in theirs.gradients.items():
        assert ours.gradients[name].dtype == torch.float32
        cosine = torch.cosine_similarity(ours.gradients[name].ravel(), expected.ravel(), dim=0)
        assert cosine > 0.98, name
