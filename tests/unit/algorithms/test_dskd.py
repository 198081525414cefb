"""Projectors of DSKD: where they start, that they learn, and attention against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from cross_toys import HS, HT, PAIR, algorithm, case, loss, made

from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import Head, divergence
from kdflow_lab.losses._dual_space import DualProjectors, projections


@pytest.mark.parametrize(("student", "teacher"), [(5, 7), (9, 4)])
def test_projections_are_those_of_the_pseudo_inverse(student: int, teacher: int) -> None:
    ours, theirs = made(40, student), made(40, teacher)
    ours[:, -1] = ours[:, 0]  # a head of less than full rank
    to_student, to_teacher = projections(ours, theirs)
    torch.testing.assert_close(to_student, (theirs.t() @ torch.linalg.pinv(ours.t())).t())
    torch.testing.assert_close(to_teacher, (ours.t() @ torch.linalg.pinv(theirs.t())).t())


def test_more_rows_than_are_added_at_once() -> None:
    ours, theirs = made(9000, 3), made(9000, 4)
    wanted = (theirs.t() @ torch.linalg.pinv(ours.t())).t()
    torch.testing.assert_close(projections(ours, theirs)[0], wanted)


def test_what_is_missing_is_named() -> None:
    of = case()
    one = algorithm("dskd")
    one._started = False
    with pytest.raises(ConfigError, match="init_beside"):
        loss(one, of)
    one.projectors = None
    with pytest.raises(ConfigError, match="`beside`"):
        one.init_beside(Head(made(len(PAIR.student), HS)), Head(made(len(PAIR.teacher), HT)))
    with pytest.raises(RuntimeError, match="without attention"):
        DualProjectors(2, 3, attention=False).queries(torch.zeros(1, 4))


@pytest.mark.parametrize("align", ["eta", "cma"])
def test_the_projectors_learn_and_have_their_own_rate(align: str) -> None:
    of, one = case(), algorithm("dskd", params={"token_align": align, "projector_lr": 0.02})
    assert one.beside_lr == 0.02
    trained = {name: p for name, p in one.projectors.named_parameters() if p.requires_grad}
    assert set(trained) == {
        "to_student", *(["query", "query_bias"] if align == "cma" else [])
    }  # fmt: skip
    before = loss(one, of)
    for _ in range(30):
        output = loss(one, of)
        grads = torch.autograd.grad(output.loss, list(trained.values()))
        with torch.no_grad():
            for parameter, gradient in zip(trained.values(), grads, strict=True):
                parameter -= 0.5 * gradient
    assert loss(one, of).extra["t2s_ce"] < 0.9 * before.extra["t2s_ce"]


@pytest.mark.parametrize("align", ["eta", "cma"])
def test_gradients_of_the_projectors(align: str) -> None:
    of, one = case(), algorithm("dskd", params={"token_align": align}, kd_ratio=0.8)
    names = [name for name, p in one.projectors.named_parameters() if p.requires_grad]
    # the second term's target is a constant: only what moves with the first is checked
    grads = torch.autograd.grad(
        loss(one, of).loss, [getattr(one.projectors, name) for name in names]
    )
    step = 1e-6
    for number, gradient in enumerate(grads):
        direction = made(*gradient.shape, seed=3)
        ends = []
        for sign in (1, -1):
            moved = algorithm("dskd", params={"token_align": align}, kd_ratio=0.8)
            with torch.no_grad():
                getattr(moved.projectors, names[number]).add_(sign * step * direction)
            terms = loss(moved, of).extra
            ends.append(0.8 * (terms["t2s_ce"] + terms["s2t_kd"]))
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)


def test_attention_is_what_it_says() -> None:
    """All answers at once, other answers masked, against answer by answer."""
    of, one = case(), algorithm("dskd", params={"token_align": "cma"}, kd_ratio=1.0)
    places, projectors = of.pairing, one.projectors
    theirs = torch.from_numpy(places.teacher_labels)
    sides = []
    for weight, labels, sample in (
        (of.head.weight.detach(), of.labels, places.student_sample),
        (of.teacher_head.weight, theirs, places.teacher_sample),
    ):
        rows = weight[labels]
        first = torch.tensor([n == 0 or sample[n] != sample[n - 1] for n in range(len(rows))])
        before = rows.roll(1, 0).masked_fill(first[:, None], 0.0)
        sides.append(torch.cat([before, rows], dim=1))
    queries = sides[0] @ projectors.query.t() + projectors.query_bias
    scores = queries @ sides[1].t() / math.sqrt(2 * HT)
    apart = torch.from_numpy(places.student_sample[:, None] != places.teacher_sample[None])
    t2s = scores.masked_fill(apart, -torch.inf).softmax(1) @ (
        of.teacher @ projectors.to_student.t()
    )
    s2t = scores.t().masked_fill(apart.t(), -torch.inf).softmax(1) @ (
        of.hidden @ projectors.to_teacher.t()
    )
    head, width = of.head.weight.detach()[: of.head.width], of.teacher_head.width
    z_t2s = t2s @ head.t()
    z_s2t = s2t @ of.teacher_head.weight[:width].t()
    z_t = of.teacher @ of.teacher_head.weight[:width].t()
    z_s = of.head.logits(of.hidden)
    wanted = torch.nn.functional.cross_entropy(z_t2s, of.labels, reduction="sum")
    wanted = wanted + divergence("forward_kl", z_s, z_t2s).sum()
    wanted = wanted + divergence("forward_kl", z_s2t, z_t).sum()
    torch.testing.assert_close(loss(one, of, 1).loss, wanted)
