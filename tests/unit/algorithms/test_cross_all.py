"""What holds of every algorithm between two tokenizers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cross_toys import PAIR, STUDENT, TEXTS, algorithm, case, gradients, loss, some, with_head

from kdflow_lab.align.pairing import Pairing
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import Head

KINDS: dict[str, dict[str, Any]] = {
    "byte_prefix": {"name": "byte_prefix"},
    "byte_prefix-all": {"name": "byte_prefix", "params": {"rows": "all"}, "kd_temperature": 1.7},
    "byte_prefix-reverse": {"name": "byte_prefix", "loss": "reverse_kl"},
    "byte_prefix-jsd": {"name": "byte_prefix", "loss": "jsd", "kd_temperature": 0.8},
    "byte_prefix-alpha": {"name": "byte_prefix", "loss": "alpha_divergence"},
    "simple_ctkd": {"name": "simple_ctkd", "kd_temperature": 1.3},
    "uld": {"name": "uld"},
    "uld-position": {"name": "uld", "params": {"align": "position", "skip_eos": True}},
    "uld-trl": {"name": "uld", "params": {"variant": "trl", "strategy": "bayesian"}},
    "gold": {"name": "gold", "kd_temperature": 1.4},
    "gold-reverse": {"name": "gold", "params": {"beta": 1.0}},
    "gold-trl": {"name": "gold", "params": {"variant": "trl"}},
    "alm": {"name": "alm"},
    "alm-limit": {"name": "alm", "params": {"comparison": "limit", "piece_weight": "tokens"}},
    "dskd": {"name": "dskd", "kd_temperature": 1.2},
    "dskd-reverse": {"name": "dskd", "loss": "reverse_kl", "params": {"topk_vocab": 6}},
    "dskd-cma": {"name": "dskd", "params": {"token_align": "cma"}},
    "simple_ctkd-topk": {"name": "simple_ctkd", "loss": "topk_forward_kl"},
}
SETTINGS = pytest.mark.parametrize("kind", KINDS)


def _made(kind: str, **more: Any) -> Any:
    return algorithm(**{"kd_ratio": 0.6, "temperature_squared": True, **KINDS[kind], **more})


@SETTINGS
@pytest.mark.parametrize("head", [{}, {"soft_cap": 2.0, "logit_scale": 1.5}])
def test_gradients_are_those_of_the_value(kind: str, head: dict[str, Any]) -> None:
    of, one = case(texts=TEXTS[:4], **head), _made(kind, chunk_tokens=4)

    def value(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return loss(one, with_head(of._replace(hidden=hidden), weight)).loss

    weight = of.head.weight
    if kind.startswith("dskd"):  # its first term sees the head as a constant
        weight = weight.detach()
    assert torch.autograd.gradcheck(value, (of.hidden, weight), fast_mode=True)


@SETTINGS
def test_any_chunk_gives_the_same(kind: str) -> None:
    of = case()
    whole = loss(_made(kind), of)
    for chunk_tokens in (1, 3, 7):
        part = loss(_made(kind, chunk_tokens=chunk_tokens), of)
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-12, equal_nan=True)
        for ours, theirs in zip(gradients(part, of), gradients(whole, of), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        whole = loss(_made(kind), of)


@SETTINGS
@pytest.mark.parametrize("cuts", [(0, 2, 5), (0, 1, 2, 3, 4, 5)])
def test_micro_batches_add_up(kind: str, cuts: tuple[int, ...]) -> None:
    of, one = case(), _made(kind)
    whole = loss(one, of)
    parts = [loss(one, some(of, *cut), len(of.labels)) for cut in pairwise(cuts)]
    for name in ("loss", "ce", "kd", "agreement"):
        total = sum(getattr(part, name) for part in parts)
        wanted = getattr(whole, name)
        torch.testing.assert_close(total, wanted, rtol=1e-10, atol=1e-12, equal_nan=True)
    for name, value in whole.extra.items():
        torch.testing.assert_close(sum(part.extra[name] for part in parts), value)
    total = torch.stack([part.loss for part in parts]).sum()
    ours = torch.autograd.grad(total, [of.hidden, of.head.weight])
    for got, wanted in zip(ours, gradients(whole, of), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@SETTINGS
def test_nothing_gives_zeros(kind: str) -> None:
    of, one = case(), _made(kind)
    blind = not kind.endswith(("position", "trl", "cma"))  # they do not look at places alone
    for empty in (some(of, 0, 0), *([_without_teacher_rows(of)] if blind else [])):
        output = loss(one, empty, 50)
        assert output.kd.item() == 0.0
        assert all(one.item() == 0.0 for one in output.extra.values())
        assert output.extra.keys() == loss(one, of).extra.keys()
        for gradient in gradients(output, of):
            assert gradient.isfinite().all()
    assert loss(one, some(of, 0, 0), 50).loss.item() == 0.0


def _without_teacher_rows(of: Any) -> Any:
    """The same, but nothing that the teacher said can be placed."""
    pairing = of.pairing
    start = pairing.teacher_start
    return of._replace(
        pairing=Pairing(
            pairing.student_start, pairing.student_end, start, start,
            pairing.student_sample, pairing.teacher_sample, pairing.teacher_labels,
        )
    )  # fmt: skip


@SETTINGS
def test_without_its_weight_the_teacher_is_no_part_of_the_gradient(kind: str) -> None:
    of, one = case(), _made(kind, kd_ratio=0.0)
    output = loss(one, of)
    sft = algorithm("sft", kd_ratio=0.0).loss(
        of.hidden, of.head, None, None, of.labels, num_valid_tokens=len(of.labels)
    )
    torch.testing.assert_close(output.loss, sft.loss)
    for ours, theirs in zip(gradients(output, of), gradients(sft, of), strict=True):
        torch.testing.assert_close(ours, theirs)
    alone = one.loss(
        of.hidden, of.head, None, None, of.labels, pairing=of.pairing, num_valid_tokens=9
    )
    assert alone.kd.isnan()


@SETTINGS
def test_a_nan_of_the_teacher_shows(kind: str) -> None:
    of = case()
    of.teacher[:] = torch.nan
    assert loss(_made(kind), of).kd.isnan()


@SETTINGS
def test_bfloat16_rows(kind: str) -> None:
    narrow, wide = case(dtype=torch.bfloat16), case()
    output = loss(_made(kind), narrow)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(loss(_made(kind), wide).loss.item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(output, narrow))


@SETTINGS
def test_rows_that_do_not_fit_are_named(kind: str) -> None:
    of, one = case(), _made(kind)
    with pytest.raises(ShapeError, match="student has 3 rows"):
        loss(one, of._replace(hidden=of.hidden[:3], labels=of.labels[:3]))
    with pytest.raises(ShapeError, match="teacher has 2 rows"):
        loss(one, of._replace(teacher=of.teacher[:2]))
    with pytest.raises(ShapeError, match=r"student.*ids"):
        loss(one, of._replace(labels=of.labels + 30))
    with pytest.raises(ShapeError, match="5 wide"):
        loss(one, of._replace(teacher=of.hidden.detach()[:, :5]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("alm")])
def test_meet_comes_first(kind: str) -> None:
    with pytest.raises(ConfigError, match="`meet`"):
        loss(_made(kind, pair=None), case())


@SETTINGS
def test_options_without_meaning_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="hidden_loss"):
        _made(kind, hidden_loss="mse")
    with pytest.raises(ConfigError, match="no parameter 'rowz'"):
        _made(kind, params={"rowz": 1})


@SETTINGS
def test_the_same_tokenizer_on_both_sides(kind: str) -> None:
    """Every token is aligned; what it comes to, each algorithm's own test says."""
    of = case(TokenizerPair(STUDENT, STUDENT, same=True))
    output = loss(_made(kind, pair=TokenizerPair(STUDENT, STUDENT, same=True)), of)
    skipped = len(TEXTS) if kind.endswith(("position", "trl")) else 0  # the ends of the answers
    assert output.extra["aligned"].item() == pytest.approx(1.0 - skipped / len(of.labels))
    assert isinstance(of.head, Head) and output.loss.isfinite()


def test_the_toys_disagree() -> None:
    """Otherwise the tests above would show little."""
    of = case()
    assert not np.array_equal(of.pairing.student_start, of.pairing.teacher_start)
    aligned = loss(algorithm("byte_prefix"), of).extra["aligned"].item()
    assert 0.3 < aligned < 1.0
    assert PAIR.shared[0].size > 5
