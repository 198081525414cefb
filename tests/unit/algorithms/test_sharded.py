"""Every algorithm under FSDP2: two ranks, one without a row, give what no rank at all gives."""

from __future__ import annotations

from typing import Any

import cross_ranks
import pytest
import torch
from ranks import on_ranks

KINDS: dict[str, dict[str, Any]] = {
    "byte_prefix": {"name": "byte_prefix"},
    "byte_prefix-reverse": {"name": "byte_prefix", "loss": "reverse_kl"},
    "simple_ctkd": {"name": "simple_ctkd"},
    "uld": {"name": "uld"},
    "gold": {"name": "gold"},
    "gold-trl": {"name": "gold", "params": {"variant": "trl"}},
    "alm": {"name": "alm"},
    "dskd": {"name": "dskd"},
    "dskd-cma": {"name": "dskd", "params": {"token_align": "cma"}},
}


@pytest.fixture(scope="module")
def steps() -> list[dict[str, dict[str, Any]]]:
    return on_ranks(2, cross_ranks.take_steps, KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_are_one(kind: str, steps: list[dict[str, dict[str, Any]]]) -> None:
    alone = cross_ranks.take_alone(KINDS[kind])
    shared = [one[kind] for one in steps]
    trained = {"grad layer.weight", "grad head"}
    if kind.startswith("dskd"):
        trained |= {"grad beside.to_student"}
    if kind == "dskd-cma":
        trained |= {"grad beside.query", "grad beside.query_bias"}
    for one in shared:
        assert one.keys() == alone.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-12)
    gradients = {name for name in alone if name.startswith("grad ")}
    assert gradients == trained
    assert all(alone[name].abs().max() > 0 for name in trained)
