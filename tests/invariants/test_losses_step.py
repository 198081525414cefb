"""A whole step with other losses: the same on one rank and on two, however it is split."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_step import Case, assert_same, make_models, steps

pytestmark = pytest.mark.timeout(900)

LOSSES = {
    "jsd": Case(loss="jsd", loss_params={"beta": 0.3}),
    "adaptive_kl": Case(loss="adaptive_kl"),
    "hidden mse": Case(hidden_loss="mse"),
    "hidden cosine": Case(hidden_loss="cosine", ring=True),
}
SPLIT = {
    "jsd": Case(loss="jsd", loss_params={"beta": 0.3}, chunk_tokens=3, micro_batch_rows=2),
    "adaptive_kl": Case(loss="adaptive_kl", chunk_tokens=5),
    "hidden mse": Case(hidden_loss="mse", micro_batch_rows=1, activation_checkpointing=True),
    "hidden cosine": Case(hidden_loss="cosine", ring=True, micro_batch_rows=3),
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory):
    """All cases on one rank and on two, keyed by (ranks, split, name)."""
    models = make_models(Path(tmp_path_factory.mktemp("models")), tied=True)
    cases = {(split, name): case for split, group in ((False, LOSSES), (True, SPLIT))
             for name, case in group.items()}  # fmt: skip
    return {
        (ranks, *key): step
        for ranks in (1, 2)
        for key, step in zip(cases, steps(ranks, models, list(cases.values())), strict=True)
    }


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_step_is_the_same(taken, name: str, split: bool, ranks: int) -> None:
    assert_same(taken[ranks, split, name], taken[1, False, name])


def test_the_projection_is_trained_and_the_losses_differ(taken) -> None:
    assert "beside.weight" in taken[2, False, "hidden mse"].gradients
    assert "beside.weight" not in taken[2, False, "jsd"].gradients
    assert len({round(taken[1, False, name].loss, 4) for name in LOSSES}) == len(LOSSES)
