"""The byte-prefix target against golden values, its own definition, and plain KD."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cross_golden import CASES, pair_of, rows_of, tensors
from cross_toys import (
    PAIR,
    STUDENT,
    TEACHER,
    TEXTS,
    Case,
    algorithm,
    case,
    gradients,
    loss,
    made,
    pairing_of,
)
from torch import Tensor

from kdflow_lab.algorithms._prefix_rows import prefix_rows, resegmented
from kdflow_lab.algorithms._prefixes import PrefixTable
from kdflow_lab.align.pairing import Pairing, covering
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.losses import NAMES, divergence

GOLDEN = [name for name, one in CASES.items() if one.get("byte_prefix")]
SAME = TokenizerPair(STUDENT, STUDENT, same=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows_targets_and_gradients(name: str) -> None:
    given, golden = rows_of(CASES[name]), CASES[name]["byte_prefix"]
    params = {"mask_whitespace": False, "mask_resegmented": False}
    one = algorithm("byte_prefix", pair_of(CASES[name]), params, kd_ratio=1.0)
    heads = given.heads
    output = one.loss(
        given.student, heads[0], given.teacher, heads[1], given.labels,
        num_valid_tokens=1, pairing=given.pairing,
    )  # fmt: skip
    exact = [row for row in golden["rows"] if row[4]]
    assert output.extra["exact"].item() == output.extra["aligned"].item() == len(exact)
    assert output.kd.item() == pytest.approx(sum(golden["forward_kl"]), rel=1e-6)
    mass = sum(1.0 - residual for residual in golden["residual"])
    assert output.extra["teacher_mass"].item() == pytest.approx(mass, rel=1e-5)
    output.loss.backward()
    full = tensors()[f"{name}.byte_prefix_grad"]
    assert given.student.grad is not None
    torch.testing.assert_close(
        given.scattered(given.student.grad, full.shape).float(), full, rtol=1e-5, atol=1e-7
    )
    # the gradient of a row is mass * q - t
    rows = torch.tensor([[row[0], row[1]] for row in exact])
    q = tensors()[f"{name}.student_logits"].double().softmax(-1)[rows[:, 0], rows[:, 1]]
    ours = given.scattered(given.student.grad, full.shape)[rows[:, 0], rows[:, 1]]
    target = (1.0 - torch.tensor(golden["residual"]))[:, None] * q - ours
    torch.testing.assert_close(
        target.float(), tensors()[f"{name}.byte_prefix_target"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"hrl"}))
@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("same", [True, False])
def test_one_tokenizer_is_plain_kd(name: str, temperature: float, same: bool) -> None:
    """Told so or not: then every token goes to itself all the same."""
    spelled = (*STUDENT.token_bytes[:-1], b"he")
    pair = TokenizerPair(*[Vocabulary(spelled, STUDENT.roles)] * 2, same=same)
    of = case(pair)
    options = {"loss": name, "kd_temperature": temperature, "temperature_squared": True}
    ours = loss(algorithm("byte_prefix", pair, **options), of)
    vanilla = algorithm("vanilla_kd", **options).loss(
        of.hidden, of.head, of.teacher, of.teacher_head, of.labels, num_valid_tokens=len(of.labels)
    )
    torch.testing.assert_close(ours[:4], vanilla[:4], rtol=1e-9, atol=1e-12)
    for got, wanted in zip(gradients(ours, of), gradients(vanilla, of), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)
    assert ours.extra["teacher_mass"].item() == pytest.approx(1.0)


def test_one_tokenizer_in_another_order() -> None:
    """Ids say nothing: only bytes and roles do."""
    order = np.random.default_rng(0).permutation(len(STUDENT))
    spelled = (*STUDENT.token_bytes[:-1], b"he")
    student = Vocabulary(spelled, STUDENT.roles)
    place = np.argsort(order)
    teacher = Vocabulary(
        tuple(spelled[token] for token in order), {"eos": int(place[STUDENT.roles["eos"]])}
    )
    of, shuffled = case(TokenizerPair(student, student)), case(TokenizerPair(teacher, student))
    head = shuffled.teacher_head
    shuffled = shuffled._replace(
        teacher=of.teacher, teacher_head=replace(head, weight=of.teacher_head.weight[order])
    )
    ours = loss(algorithm("byte_prefix", TokenizerPair(teacher, student)), shuffled)
    plain = loss(algorithm("byte_prefix", TokenizerPair(student, student)), of)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def _target(p: Tensor, written: bytes) -> Tensor:
    """The definition, token by token: Float[V + 1], the residual last."""
    spelled = STUDENT.token_bytes
    target = torch.zeros(len(STUDENT) + 1, dtype=p.dtype)
    for token, mass in enumerate(p.tolist()):
        one = TEACHER.token_bytes[token]
        if written and (one is None or not one.startswith(written) or one == written):
            continue
        if one is None:
            target[STUDENT.roles["eos"] if token == TEACHER.roles["eos"] else -1] += mass
            continue
        rest = one[len(written) :]
        fits = [n for n, s in enumerate(spelled) if s and rest.startswith(s)]
        target[max(fits, key=lambda n: len(spelled[n] or b""), default=-1)] += mass
    return target / target.sum()


def _expected(of: Case, rows: str, mask: bool) -> dict[int, Tensor]:
    """The definition of which tokens have a target, and of the target."""
    pairing = of.pairing
    p = of.teacher_head.logits(of.teacher).softmax(-1)
    found = {}
    for token in range(len(of.labels)):
        start, end = pairing.student_start[token], pairing.student_end[token]
        for row in range(len(p)):
            first, last = pairing.teacher_start[row], pairing.teacher_end[row]
            if not first <= start < last:
                continue
            single = (first, last) == (start, end)
            blank = (STUDENT.token_bytes[of.labels[token]] or b"x").isspace()
            if (rows == "one_to_one" and not single) or (rows == "exact" and end > last):
                continue
            if mask and blank and not single:
                continue
            spelled = TEACHER.token_bytes[pairing.teacher_labels[row]] or b""
            found[token] = _target(p[row], spelled[: start - first])
    return found


@pytest.mark.parametrize("rows", ["one_to_one", "exact", "all"])
@pytest.mark.parametrize("mask", [True, False])
def test_the_definition(rows: str, mask: bool) -> None:
    of = case()
    expected = _expected(of, rows, mask)
    params = {"rows": rows, "mask_whitespace": mask}
    output = loss(algorithm("byte_prefix", params=params, kd_ratio=1.0), of, 1)
    logq = of.head.logits(of.hidden).log_softmax(-1)
    value = sum(
        (t[:-1].xlogy(t[:-1]) - t[:-1] * logq[token]).sum() for token, t in expected.items()
    )
    assert isinstance(value, Tensor)
    torch.testing.assert_close(output.loss, value, rtol=1e-9, atol=1e-12)
    assert output.extra["aligned"].item() == len(expected)
    mass = sum(float(t[:-1].sum()) for t in expected.values())
    assert output.extra["teacher_mass"].item() == pytest.approx(mass, rel=1e-6)
    for got, wanted in zip(
        gradients(output, of), torch.autograd.grad(value, [of.hidden, of.head.weight]), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)
    assert len({len(_expected(of, one, False)) for one in ("one_to_one", "exact", "all")}) == 3


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "tvd", "topk_reverse_kl"])
def test_other_divergences_see_a_bucket(name: str) -> None:
    """The ids that a row can reach, and one outcome for the others."""
    of = case()
    expected = _expected(of, "exact", True)
    output = loss(algorithm("byte_prefix", loss=name, kd_ratio=1.0), of, 1)
    rows = []
    for token, t in expected.items():
        z = of.head.logits(of.hidden)[token]
        reached = t[:-1] > 0  # every probability of these small models is
        assert not reached.all()
        rest = torch.stack([z[~reached].logsumexp(-1), t[-1].clamp(min=1e-6).log()])
        student = torch.cat([z[reached], rest[:1]])
        teacher = torch.cat([t[:-1][reached].log(), rest[1:]])
        rows.append(divergence(name, student[None], teacher[None]))
    torch.testing.assert_close(output.kd, torch.cat(rows).sum().detach(), rtol=1e-9, atol=1e-12)


def test_whitespace_is_counted_and_can_be_kept() -> None:
    of = case()
    masked = loss(algorithm("byte_prefix", params={"rows": "all"}), of)
    kept = loss(algorithm("byte_prefix", params={"rows": "all", "mask_whitespace": False}), of)
    left_out = masked.extra["whitespace"]
    assert left_out.item() > 0.0
    assert kept.extra["whitespace"].item() == 0.0
    torch.testing.assert_close(masked.extra["aligned"] + left_out, kept.extra["aligned"])


def test_a_space_that_only_the_spelling_has_counts_as_written() -> None:
    """A tokenizer that puts a space in front of a text writes "the" with its token " the"."""
    teacher_ids = np.array([TEACHER.token_bytes.index(b" the")])
    student_ids = np.array([STUDENT.token_bytes.index(b"the")])
    zero, three = np.array([0]), np.array([3])
    pairing = Pairing(zero, three, zero, three, zero, zero, teacher_ids)
    found = prefix_rows(PAIR, pairing, student_ids, rows="exact", blank=None)
    assert found.teacher.tolist() == [0]
    assert found.written == [b" "]
    # both put it there: nothing is written
    other = TokenizerPair(TEACHER, Vocabulary((b" the",)))
    found = prefix_rows(other, pairing, np.array([0]), rows="exact", blank=None)
    assert found.teacher.tolist() == [0]
    assert found.written == [None]


def test_spellings_that_contradict_each_other_have_no_row() -> None:
    pairing, labels = pairing_of(PAIR, TEXTS[:1])
    right = prefix_rows(PAIR, pairing, labels.numpy(), rows="all", blank=None)
    deep = np.flatnonzero(covering(pairing).depth > 0)
    wrong = labels.numpy().copy()
    letters = {one: n for n, one in enumerate(STUDENT.token_bytes) if one and len(one) == 1}
    token = next(int(n) for n in deep if len(STUDENT.token_bytes[labels[n]] or b"") == 1)
    wrong[token] = letters[b"\n"]
    found = prefix_rows(PAIR, pairing, wrong, rows="all", blank=None)
    assert right.teacher[token] >= 0
    assert found.teacher[token] == -1


def test_a_table_routes_to_the_longest_prefix() -> None:
    table = PrefixTable(PAIR, len(STUDENT), len(TEACHER))
    spelled = STUDENT.token_bytes
    for token, one in enumerate(TEACHER.token_bytes):
        if one is None:
            wanted = 0 if token == TEACHER.roles["eos"] else -1
        else:
            fits = [n for n, s in enumerate(spelled) if s and one.startswith(s)]
            wanted = max(fits, key=lambda n: len(spelled[n] or b""), default=-1)
        assert table.student_ids[token] == wanted
    narrow = PrefixTable(PAIR, 5, 4)
    assert len(narrow.student_ids) == 4
    assert narrow.student_ids.max() < 5


def test_bytes_that_end_an_order() -> None:
    high = Vocabulary((b"\xff", b"\xff\xff", b"\xff\xfea", b"\xfe", b"\xfe\xff"))
    table = PrefixTable(TokenizerPair(high, high), 5, 5)
    assert sorted(table.within(b"\xff").teacher_ids.tolist()) == [1, 2]
    assert table.within(b"\xfe").teacher_ids.tolist() == [4]
    assert table.within(b"\xff\xff").teacher_ids.tolist() == []


def test_a_row_without_any_mass_on_the_students_ids() -> None:
    """The teacher is sure of a special token that the student does not have."""
    of = case()
    bias = torch.full((len(TEACHER) + 2,), -1e4, dtype=torch.float64)
    bias[-3] = 0.0
    of = of._replace(teacher_head=replace(of.teacher_head, bias=bias))
    for name in ("forward_kl", "reverse_kl"):
        output = loss(algorithm("byte_prefix", loss=name), of)
        assert output.loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(output, of))


def test_padded_heads_and_narrow_ones() -> None:
    """Columns beyond a tokenizer are cut; a head with fewer rows than ids has fewer."""
    of = case()
    whole = loss(algorithm("byte_prefix"), of)
    padded = replace(of.teacher_head, weight=torch.cat([of.teacher_head.weight, made(4, 7)]))
    torch.testing.assert_close(
        loss(algorithm("byte_prefix"), of._replace(teacher_head=padded)), whole
    )
    narrow = loss(algorithm("byte_prefix"), of._replace(teacher_head=of.teacher_head.cut(15)))
    assert narrow.loss.isfinite()
    assert narrow.kd != whole.kd


def test_bytes_go_to_the_token_that_writes_them_not_to_the_byte_to_fall_back_on() -> None:
    """Byte fallback stands before the pieces in many vocabularies; no text is written with it."""
    student = Vocabulary((b".", b"a", b".", b"b"), byte_fallback=frozenset({0, 3}))
    teacher = Vocabulary((b".", b"a", b".a", b"b"))
    table = PrefixTable(TokenizerPair(teacher, student), 4, 4)
    assert table.student_ids.tolist() == [2, 1, 2, 3]


def test_a_token_that_the_target_would_write_in_another_way_is_left_out() -> None:
    """The student writes `a`, `bc`; the longest prefix of the teacher's `abc` is its `ab`."""
    student = Vocabulary((b"a", b"ab", b"bc"))
    teacher = Vocabulary((b"abc", b"x"))
    pair = TokenizerPair(teacher, student)
    place = np.array([0, 1]), np.array([1, 3]), np.array([0]), np.array([3])
    pairing = Pairing(*place, np.zeros(2, int), np.zeros(1, int), np.array([0]))
    labels = np.array([0, 2])
    found = prefix_rows(pair, pairing, labels, rows="exact", blank=None)
    assert found.teacher.tolist() == [0, 0]
    left_out = resegmented(PrefixTable(pair, 3, 2), found, pairing.teacher_labels, labels)
    assert left_out.tolist() == [True, False]
