"""Every divergence against its formula as it is written, at its edges, and under bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kdflow_lab.losses as losses
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import _adaptive, divergence

INF = math.inf
PARAMS: dict[str, list[dict[str, Any]]] = {
    "jsd": [{"beta": 0.5}, {"beta": 0.1}, {"beta": 0.0}, {"beta": 1.0}],
    "skewed_forward_kl": [{"skew": 0.1}, {"skew": 0.7}],
    "skewed_reverse_kl": [{"skew": 0.1}, {"skew": 0.7}],
    "adaptive_kl": [{"alpha": 0.5}, {"alpha": 0.2}],
    "alpha_divergence": [{"alpha": a} for a in (0.5, 0.2, 0.9, 0.0, 1.0)],
    "hrl": [{"k": 5}, {"k": 2}, {"k": 100}],
    "topk_forward_kl": [{"k": 3}, {"k": 1}, {"k": 100}],
    "topk_reverse_kl": [{"k": 3}, {"k": 1}, {"k": 100}],
}
CASES: list[tuple[str, dict[str, Any]]] = [
    (name, params) for name in losses.NAMES for params in PARAMS.get(name, [{}])
]
IDS = [f"{name}-{params}" for name, params in CASES]
ZERO_AT_EQUALITY = [name for name in losses.NAMES if name not in ("hrl", "top1_ce")]


def _logits(tokens: int = 6, width: int = 9, seed: int = 0, scale: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, tokens, width, generator=generator, dtype=torch.float64) * scale
    return made[0], made[1]


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def _by_hand(name: str, q: Tensor, p: Tensor, **params: Any) -> Tensor:
    """The formula, row by row where it is about order."""
    if name == "jsd":
        beta = params["beta"]
        m = beta * p + (1 - beta) * q
        if beta in (0, 1):
            return _kl(q, p) if beta else _kl(p, q)
        return beta * _kl(p, m) + (1 - beta) * _kl(q, m)
    if name == "skewed_forward_kl":
        return _kl(p, params["skew"] * p + (1 - params["skew"]) * q)
    if name == "skewed_reverse_kl":
        return _kl(q, params["skew"] * q + (1 - params["skew"]) * p)
    if name == "alpha_divergence":
        a = params["alpha"]
        if a in (0, 1):
            return _kl(p, q) if a else _kl(q, p)
        return (1 - (p**a * q ** (1 - a)).sum(-1)) / (a * (1 - a))
    if name == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    rows = [_row(name, q[i], p[i], **params) for i in range(len(q))]
    return torch.stack(rows)


def _row(name: str, q: Tensor, p: Tensor, **params: Any) -> Tensor:
    if name == "adaptive_kl":
        order = p.argsort().tolist()
        tail, mass = set(), 0.0
        for v in order:
            mass += p[v].item()
            if mass <= params["alpha"]:
                tail.add(v)
        gaps = [(p[v] - q[v]).abs().item() for v in range(len(p))]
        head_gap = sum(gap for v, gap in enumerate(gaps) if v not in tail)
        tail_gap = sum(gap for v, gap in enumerate(gaps) if v in tail)
        return (head_gap * _kl(p, q) + tail_gap * _kl(q, p)) / (head_gap + tail_gap)
    if name == "top1_ce":
        top = int(p.argmax())
        return -p[top] * q[top].log()
    if name == "hrl":
        k = min(params["k"], len(p))
        A, B = q.topk(k).indices.tolist(), p.topk(k).indices.tolist()
        value = torch.stack([(q[b] - q[B[0]]).clamp(min=0) for b in B]).sum()
        for b in B:
            for a in A:
                if p[b] > p[a]:
                    value = value + (q[a] - q[b]).clamp(min=0)
        return value
    k = min(params["k"], len(p))
    top = (p if name == "topk_forward_kl" else q).topk(k).indices
    coarse = []
    for one in (p, q):
        rest = one.sum() - one[top].sum()
        coarse.append(torch.cat([one[top], rest[None]]) if k < len(p) else one[top])
    return _kl(*coarse) if name == "topk_forward_kl" else _kl(*reversed(coarse))


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_is_the_formula(name: str, params: dict[str, Any], temperature: float) -> None:
    student, teacher = _logits()
    q, p = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    if name in ("forward_kl", "reverse_kl"):
        expected = _kl(p, q) if name == "forward_kl" else _kl(q, p)
    else:
        expected = _by_hand(name, q, p, **params)
    value = divergence(name, student, teacher, temperature=temperature, **params)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-13)
    squared = divergence(
        name, student, teacher, temperature=temperature, temperature_squared=True, **params
    )
    torch.testing.assert_close(squared, temperature**2 * value)


def test_two_tokens_by_hand() -> None:
    """Probabilities 0.75 and 0.25 against 0.5 and 0.5."""
    teacher = torch.tensor([[math.log(0.75), math.log(0.25)]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = {
        "kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "rkl": 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        "tvd": 0.25,
        "top1_ce": -0.75 * math.log(0.5),
        "alpha_divergence": 4 * (1 - math.sqrt(0.375) - math.sqrt(0.125)),
    }
    for name, value in expected.items():
        assert divergence(name, student, teacher).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
def test_gradient_passes_gradcheck(name: str, params: dict[str, Any]) -> None:
    student, teacher = _logits(tokens=3)
    student.requires_grad_()
    if name == "adaptive_kl":
        with torch.no_grad():  # its weights as constants, as they are defined
            value = divergence(name, student, teacher, **params)
            forward = divergence("forward_kl", student, teacher)
            reverse = divergence("reverse_kl", student, teacher)
            share = (value - reverse) / (forward - reverse)

        def frozen(logits: Tensor) -> Tensor:
            kls = [divergence(one, logits, teacher) for one in ("forward_kl", "reverse_kl")]
            return share * kls[0] + (1 - share) * kls[1]

        assert torch.autograd.gradcheck(frozen, student)
        ours = torch.autograd.grad(divergence(name, student, teacher, **params).sum(), student)
        theirs = torch.autograd.grad(frozen(student).sum(), student)
        torch.testing.assert_close(ours, theirs)
    else:
        assert torch.autograd.gradcheck(
            lambda one: divergence(name, one, teacher, temperature=1.3, **params), student
        )


EDGES = {
    "equal": [0.3, -1.0, 2.0, 0.0],
    "flat": [0.0, 0.0, 0.0, 0.0],
    "one-hot": [1e4, -1e4, -1e4, -1e4],
    "another one-hot": [-1e4, 1e4, -1e4, -1e4],
    "far away": [1e4, 1e4 - 1, 1e4 - 2, 1e4],
    "masked": [0.0, -INF, 1.0, -INF],
    "masked elsewhere": [-INF, 0.5, 1.0, 0.0],
    "one left": [-INF, -INF, -INF, 0.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
def test_edges_give_no_nan(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    """Whatever meets whatever: a value that is no NaN, a finite gradient, inf only where meant."""
    for student_kind, student_row in EDGES.items():
        for teacher_kind, teacher_row in EDGES.items():
            student = torch.tensor([student_row], dtype=dtype, requires_grad=True)
            teacher = torch.tensor([teacher_row], dtype=dtype)
            value = divergence(name, student, teacher, **params)
            value.sum().backward()
            what = f"{student_kind} against {teacher_kind}"
            assert student.grad is not None
            assert not value.isnan().any(), what
            assert student.grad.isfinite().all(), what
            q, p = student.detach().softmax(-1), teacher.softmax(-1)
            excluded = {
                "student": bool(((p > 0) & student.isneginf()).any()),
                "teacher": bool(((q > 0) & teacher.isneginf()).any()),
            }
            if value.isinf().any():
                assert excluded["student"] or excluded["teacher"], what
                assert (student.grad == 0).all(), what
            if name == "forward_kl":
                assert value.isinf().item() == excluded["student"], what
            if name == "reverse_kl":
                assert value.isinf().item() == excluded["teacher"], what
            bounded = ("tvd", "hrl", "skewed_forward_kl", "skewed_reverse_kl")
            if name in bounded or (name == "jsd" and 0 < params["beta"] < 1):
                assert value.isfinite().all(), what
            if student_kind == teacher_kind and name in ZERO_AT_EQUALITY:
                assert value.abs().item() < 1e-6, what
                assert (student.grad.abs() < 1e-6).all(), what


def sixty_fourths(most: int) -> st.SearchStrategy[float]:
    """Numbers whose sums are exact: a shift by one neither makes nor breaks a tie."""
    return st.integers(-64 * most, 64 * most).map(lambda count: count / 64)


finite = sixty_fourths(20)
pairs = st.integers(2, 6).flatmap(
    lambda width: st.tuples(
        st.lists(finite, min_size=width, max_size=width),
        st.lists(finite, min_size=width, max_size=width),
    )
)


@settings(max_examples=60, deadline=None)
@given(pairs, sixty_fourths(100), st.sampled_from([0.3, 1.0, 5.0]))
def test_properties_that_hold_by_definition(pair, shift: float, temperature: float) -> None:
    student, teacher = (torch.tensor([row], dtype=torch.float64) for row in pair)
    for name, params in CASES:
        value = divergence(name, student, teacher, temperature=temperature, **params)
        assert value.item() >= -1e-9, name
        if name != "hrl":  # a shift may break a tie in which token is first
            shifted = divergence(
                name, student + shift, teacher - shift, temperature=temperature, **params
            )
            torch.testing.assert_close(shifted, value, rtol=1e-6, atol=1e-8, msg=name)
        if name in ZERO_AT_EQUALITY:
            assert abs(divergence(name, teacher, teacher + shift, **params).item()) < 1e-9, name
    jsd = divergence("jsd", student, teacher)
    torch.testing.assert_close(jsd, divergence("jsd", teacher, student), rtol=1e-9, atol=1e-12)
    assert jsd.item() <= math.log(2) + 1e-12
    whole = divergence("forward_kl", student, teacher)
    assert divergence("topk_forward_kl", student, teacher, k=1).item() <= whole.item() + 1e-9


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_limits(pair) -> None:
    student, teacher = (torch.tensor([row], dtype=torch.float64) / 4 for row in pair)
    forward, reverse = (divergence(one, student, teacher) for one in ("kl", "rkl"))
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-6}
    small = 1e-6

    def value(name: str, **params: Any) -> Tensor:
        return divergence(name, student, teacher, **params)

    torch.testing.assert_close(value("alpha_divergence", alpha=1 - small), forward, **near)
    torch.testing.assert_close(value("alpha_divergence", alpha=small), reverse, **near)
    torch.testing.assert_close(value("skewed_forward_kl", skew=small), forward, **near)
    torch.testing.assert_close(value("skewed_reverse_kl", skew=small), reverse, **near)
    torch.testing.assert_close(value("jsd", beta=small) / small, forward, **near)
    torch.testing.assert_close(value("jsd", beta=1 - small) / small, reverse, **near)
    torch.testing.assert_close(value("topk_forward_kl", k=6), forward)
    torch.testing.assert_close(value("adaptive_kl", alpha=0.0), forward)


def test_float64_stays_and_bf16_is_lifted_before_it_is_divided() -> None:
    student, teacher = _logits()
    assert divergence("jsd", student, teacher).dtype == torch.float64
    assert divergence("jsd", student.float(), teacher).dtype == torch.float64
    low = student.bfloat16(), teacher.bfloat16()
    value = divergence("jsd", *low, temperature=0.7)
    assert value.dtype == torch.float32
    exact = divergence("jsd", low[0].double(), low[1].double(), temperature=0.7)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_leading_dimensions_are_kept() -> None:
    student, teacher = (one.reshape(2, 3, 9) for one in _logits())
    value = divergence("jsd", student, teacher)
    assert value.shape == (2, 3)
    flat = divergence("jsd", student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(value.flatten(), flat)
    assert divergence("jsd", student[:, :0], teacher[:, :0]).shape == (2, 0)


def test_no_gradient_flows_to_the_teacher() -> None:
    student, teacher = _logits()
    teacher.requires_grad_()
    student.requires_grad_()
    for name in losses.NAMES:
        divergence(name, student, teacher).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.97])
def test_adaptive_kl_finds_the_head_without_sorting(monkeypatch, scale: float, alpha) -> None:
    """Flat rows need the sort, peaked ones do not; both give the same."""
    student, teacher = _logits(tokens=8, width=600, scale=scale)
    teacher[4:] *= 8
    whole = divergence("adaptive_kl", student, teacher, alpha=alpha)
    monkeypatch.setattr(_adaptive, "LISTED", 20)
    listed = divergence("adaptive_kl", student, teacher, alpha=alpha)
    torch.testing.assert_close(listed, whole, rtol=1e-9, atol=1e-12)


def test_rows_that_are_no_distribution_are_named() -> None:
    student, teacher = _logits()
    broken = student.clone()
    broken[2, 3] = math.nan
    broken[4] = -INF
    with pytest.raises(
        ConfigError, match=r"student's logits .* 2 of 6 rows: 2, 4. Row 2 holds NaN"
    ):
        divergence("forward_kl", broken, teacher)
    broken = teacher.clone()
    broken[5, 0] = INF
    with pytest.raises(ConfigError, match=r"teacher's .* 1 of 6 rows: 5. Row 5 holds \+inf"):
        divergence("forward_kl", student, broken)
    with pytest.raises(ConfigError, match=r"and 2 more. Row 0 holds only -inf"):
        divergence("tvd", torch.full((12, 3), -INF), torch.zeros(12, 3))


def test_bad_input_is_one_clear_error() -> None:
    student, teacher = _logits()
    with pytest.raises(ConfigError, match="Did you mean 'reverse_kl'"):
        divergence("revers_kl", student, teacher)
    with pytest.raises(
        ConfigError, match=r"no parameter 'bta'. Did you mean 'beta'. It takes beta"
    ):
        divergence("jsd", student, teacher, bta=0.5)
    with pytest.raises(ConfigError, match=r"'tvd' has no parameter 'beta'. It takes none"):
        divergence("tvd", student, teacher, beta=0.5)
    with pytest.raises(ConfigError, match=r"beta is 1.5; expected a number from 0 to 1"):
        divergence("jsd", student, teacher, beta=1.5)
    with pytest.raises(ConfigError, match=r"skew is 0; .*not the ends"):
        divergence("skl", student, teacher, skew=0)
    for k in (0, 2.5, -1, math.nan, "3", True):
        with pytest.raises(ConfigError, match="expected a whole number, at least 1"):
            divergence("hrl", student, teacher, k=k)
    for temperature in (0.0, -1.0, math.nan, INF):
        with pytest.raises(ConfigError, match="temperature"):
            divergence("forward_kl", student, teacher, temperature=temperature)
    with pytest.raises(ShapeError, match="Cut both"):
        divergence("forward_kl", student, teacher[:, :4])
    with pytest.raises(ShapeError, match="no vocabulary"):
        divergence("forward_kl", student[:, :0], teacher[:, :0])
    with pytest.raises(ConfigError, match="not a divergence: it compares the student with the lab"):
        divergence("cross_entropy", student, teacher)
