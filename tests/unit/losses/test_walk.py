"""Closed forms against autograd, heads of every kind, and what autograd asks of the loss."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdflow_lab.errors import ModelError
from kdflow_lab.losses import (
    NAMES,
    Adapter,
    Head,
    chunked_kd_loss,
    divergence,
    per_token,
    register_divergence,
    unregister_divergence,
)
from kdflow_lab.losses import _chunks as chunks
from kdflow_lab.losses import _walk as walk
from kdflow_lab.losses._block import IN_PLACE
from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses._in_place import top_token
from kdflow_lab.losses._weight_gradient import WeightGradient, narrowed

T, HS, HT, V = 13, 6, 10, 23
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.5},
    "soft-cap": {"soft_cap": 2.0},
    "all": {"bias": True, "logit_scale": 3.0, "soft_cap": 4.0, "vocab_size": V - 4},
}


def _made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 97 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _case(
    kind: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Head, Tensor, Head, Tensor]:
    fields = dict(HEADS[kind])
    bias = _made(V, dtype=dtype).requires_grad_() if fields.pop("bias", False) else None
    head = Head(_made(V, HS, dtype=dtype).requires_grad_(), bias, **fields)
    teacher_head = Head(_made(V + 5, HT, dtype=dtype) / 2).cut(head.width)
    labels = torch.arange(T) % head.width
    hidden = _made(T, HS, dtype=dtype).requires_grad_()
    return hidden, head, _made(T, HT, dtype=dtype), teacher_head, labels


def _gradients(output: Any, hidden: Tensor, head: Head) -> list[Tensor]:
    inputs = [one for one in (hidden, head.weight, head.bias) if one is not None]
    return list(torch.autograd.grad(output.loss, inputs))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("ratio", [0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", IN_PLACE)
def test_closed_forms_are_what_autograd_says(name, temperature, ratio, kind) -> None:
    hidden, head, teacher, teacher_head, labels = _case(kind)
    for given in (labels, None) if ratio == 1.0 else (labels,):
        outputs = [
            chunked_kd_loss(
                hidden, head, teacher, teacher_head, given, divergence=name, kd_ratio=ratio,
                temperature=temperature, temperature_squared=True, num_valid_tokens=31,
                chunk_tokens=5, closed_form=closed_form,
            )
            for closed_form in (True, False)
        ]  # fmt: skip
        for ours, theirs in zip(*outputs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14, equal_nan=True)
        for ours, theirs in zip(*(_gradients(o, hidden, head) for o in outputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", IN_PLACE)
def test_closed_forms_at_their_edges(name: str, dtype: torch.dtype) -> None:
    """One-hot, equal, masked: the same values and gradients as under autograd, and no NaN."""
    inf = math.inf
    rows = torch.tensor(
        [[1e4, -1e4, 0.0, 1.0], [0.0] * 4, [5.0, -inf, 1.0, -3.0], [-inf, -inf, 2.0, 1.0],
         [300.0, 290.0, 200.0, 299.0], [3e-3, 0.0, -3e-3, 1e-3], [-inf, 88.0, -16.0, 0.0]]
    )  # fmt: skip
    student, teacher = (
        one.reshape(-1, 4) for one in (rows[:, None].expand(7, 7, 4), rows[None].expand(7, 7, 4))
    )
    for side, teachers in ((student, teacher), (teacher, student)):
        found = []
        for closed_form in (True, False):
            # logits come as hidden states; -inf times zero would be NaN: each row has its own head
            values, gradients = [], []
            for z, t in zip(side.to(dtype), teachers.to(dtype), strict=True):
                bias = z.clone().requires_grad_()
                nothing = torch.zeros(1, 1, dtype=dtype)
                weight = torch.zeros(4, 1, dtype=dtype)
                output = chunked_kd_loss(
                    nothing, Head(weight, bias), nothing, Head(weight, t), None,
                    divergence=name, closed_form=closed_form,
                )  # fmt: skip
                values.append(output.kd)
                gradients.append(torch.autograd.grad(output.loss, bias)[0])
            found.append((torch.stack(values), torch.stack(gradients)))
        (ours, our_grad), (theirs, their_grad) = found
        assert not ours.isnan().any()
        assert our_grad.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        # reverse KL's gradient is a difference of numbers as large as the logits
        tolerance = 1e-3 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(our_grad, their_grad, rtol=tolerance, atol=tolerance)


def test_nan_logits_reach_the_loss_and_the_gradient() -> None:
    """The step's guard looks for them there: nothing may hide them."""
    for name in NAMES:
        for side in ("student", "teacher"):
            hidden, head, teacher, teacher_head, labels = _case("plain")
            bad = hidden.detach().clone() if side == "student" else teacher.clone()
            bad[3, 2] = math.nan
            inputs = (
                (bad.requires_grad_(), head, teacher) if side == "student" else (hidden, head, bad)
            )
            output = chunked_kd_loss(
                *inputs, teacher_head, labels, divergence=name, kd_ratio=0.5, chunk_tokens=4
            )
            (gradient,) = torch.autograd.grad(output.loss, head.weight)
            assert not (output.loss.isfinite() and gradient.isfinite().all()), (name, side)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [1, 2, 100])
def test_blocks_do_not_matter(monkeypatch, name: str, block: int) -> None:
    hidden, head, teacher, teacher_head, labels = _case("all")
    whole = per_token(hidden, head, teacher, teacher_head, labels, divergence=name)
    monkeypatch.setattr(chunks, "CPU_BLOCK_ELEMENTS", block * head.width * 2)
    parts = per_token(hidden, head, teacher, teacher_head, labels, divergence=name, chunk_tokens=5)
    logits = head.logits(hidden), teacher_head.logits(teacher)
    torch.testing.assert_close(whole.kd, divergence(name, *logits).detach())
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_top_token_is_argmax() -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (5, 4096, 5000, 9999):
        logits = torch.randn(40, width, generator=generator)
        logits[7] = 0.0
        logits[8, -1] = 50.0
        logits[9, 3] = 50.0
        largest, place = top_token(logits)
        assert torch.equal(place[:, 0], logits.argmax(-1))
        assert torch.equal(largest[:, 0], logits.amax(-1))
        logits[5, width // 2] = math.nan
        assert top_token(logits)[0][5].isnan()


# -- what autograd asks ---------------------------------------------------------------------------


def test_a_registered_divergence_is_walked_like_the_others() -> None:
    @register_divergence("squared_test")
    def squared(student_logits: Tensor, teacher_logits: Tensor, power: float = 2.0) -> Tensor:
        q, p = student_logits.softmax(-1), teacher_logits.softmax(-1)
        return (q - p).abs().pow(power).sum(-1)

    try:
        hidden, head, teacher, teacher_head, labels = _case("all")

        def loss(h: Tensor, w: Tensor) -> Tensor:
            return chunked_kd_loss(
                h, Head(w, head.bias, 3.0, 4.0, V - 4), teacher, teacher_head, labels,
                divergence="squared_test", kd_ratio=0.5, temperature=2.0, chunk_tokens=4, power=3.0,
            ).loss  # fmt: skip

        assert torch.autograd.gradcheck(loss, (hidden, head.weight))
    finally:
        unregister_divergence("squared_test")


def test_accumulation_adds_up_and_ranks_may_be_uneven() -> None:
    hidden, head, teacher, teacher_head, labels = _case("all")
    options: dict[str, Any] = {"divergence": "jsd", "kd_ratio": 0.5, "num_valid_tokens": T}
    whole = chunked_kd_loss(hidden, head, teacher, teacher_head, labels, **options)
    expected = _gradients(whole, hidden, head)
    total = 0.0
    for part in (slice(0, 5), slice(5, 5), slice(5, 13)):
        output = chunked_kd_loss(
            hidden[part], head, teacher[part], teacher_head, labels[part], **options
        )
        (2 * output.loss).backward()
        total += output.loss.item()
    assert total == pytest.approx(whole.loss.item())
    for leaf, gradient in zip((hidden, head.weight, head.bias), expected, strict=True):
        assert leaf is not None
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_a_graph_that_is_kept_can_be_walked_twice_and_no_other() -> None:
    hidden, head, teacher, teacher_head, labels = _case("plain")
    loss = chunked_kd_loss(hidden, head, teacher, teacher_head, labels).loss
    (first,) = torch.autograd.grad(3 * loss, head.weight, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, head.weight)
    assert torch.equal(first, kept), "the second walk changed what the first gave out"
    torch.testing.assert_close(first, 3 * second)
    with pytest.raises(RuntimeError, match=r"handed out already|second time"):
        torch.autograd.grad(loss, head.weight)


def test_tied_embeddings_get_both_gradients() -> None:
    embedding = _made(V, HS).requires_grad_()
    _, _, teacher, teacher_head, labels = _case("plain")
    teacher_head = teacher_head.cut(V)

    def hidden_of(weight: Tensor) -> Tensor:
        return torch.tanh(weight[labels])

    output = chunked_kd_loss(
        hidden_of(embedding), Head(embedding), teacher, teacher_head, labels, chunk_tokens=4
    )
    (ours,) = torch.autograd.grad(output.loss, embedding)
    logits = hidden_of(embedding) @ embedding.T
    whole = divergence("kl", logits, teacher_head.logits(teacher)).mean()
    (theirs,) = torch.autograd.grad(whole, embedding)
    torch.testing.assert_close(ours, theirs)


def test_checkpointed_layers_do_not_run_the_loss_twice(monkeypatch) -> None:
    calls = []
    real = walk.walk
    monkeypatch.setattr("kdflow_lab.losses._chunked.walk", lambda *a: calls.append(1) or real(*a))
    hidden, head, teacher, teacher_head, labels = _case("plain")
    body = nn.Linear(HS, HS, dtype=torch.float64)
    gradients = []
    for checkpointed in (False, True):
        rows = checkpoint(body, hidden, use_reentrant=False) if checkpointed else body(hidden)
        loss = chunked_kd_loss(rows, head, teacher, teacher_head, labels, kd_ratio=0.5).loss
        gradients.append(torch.autograd.grad(loss, [body.weight, head.weight]))
    assert len(calls) == 2
    torch.testing.assert_close(*gradients)


def test_no_grad_keeps_no_gradient() -> None:
    hidden, head, teacher, teacher_head, labels = _case("plain")
    with torch.no_grad():
        quiet = chunked_kd_loss(hidden, head, teacher, teacher_head, labels, kd_ratio=0.5)
    loud = chunked_kd_loss(hidden, head, teacher, teacher_head, labels, kd_ratio=0.5)
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, loud.loss.detach())


# -- LoRA -----------------------------------------------------------------------------------------


def _lora(training: bool = True, dropout: float = 0.0) -> Any:
    """What PEFT makes of a head, by hand."""
    base = nn.Linear(HS, V, bias=False, dtype=torch.float64)
    base.requires_grad_(False)
    layer: Any = nn.Module()
    layer.base_layer = base
    layer.lora_A = nn.ModuleDict({"default": nn.Linear(HS, 3, bias=False, dtype=torch.float64)})
    layer.lora_B = nn.ModuleDict({"default": nn.Linear(3, V, bias=False, dtype=torch.float64)})
    layer.lora_dropout = nn.ModuleDict({"default": nn.Dropout(dropout)})
    layer.scaling, layer.active_adapters = {"default": 0.5}, ["default"]
    layer.merged = layer.disable_adapters = False
    return layer.train(training)


def _model(head: Any) -> Any:
    return SimpleNamespace(get_output_embeddings=lambda: head, config={})


def test_lora_on_the_head_trains_its_two_factors() -> None:
    layer = _lora()
    head = Head.of(_model(layer))
    hidden, _, teacher, teacher_head, labels = _case("plain")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    output = chunked_kd_loss(
        hidden, head, teacher, teacher_head, labels, divergence="jsd", kd_ratio=0.6, chunk_tokens=4
    )
    ours = torch.autograd.grad(output.loss, [hidden, a, b])
    # the same with the sum of the weights, formed where autograd sees it
    summed = Head(layer.base_layer.weight + 0.5 * b @ a)
    other = chunked_kd_loss(
        hidden,
        summed,
        teacher,
        teacher_head,
        labels,
        divergence="jsd",
        kd_ratio=0.6,
        chunk_tokens=9,
    )
    theirs = torch.autograd.grad(other.loss, [hidden, a, b])
    torch.testing.assert_close(output.loss, other.loss)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.logits(hidden), summed.logits(hidden))
    torch.testing.assert_close(head.cut(7).logits(hidden), summed.cut(7).logits(hidden))
    assert layer.base_layer.weight.grad is None


def test_heads_that_lora_cannot_describe_are_refused() -> None:
    merged = _lora()
    merged.merged = True
    assert Head.of(_model(merged)).adapter is None
    assert Head.of(_model(_lora(training=False, dropout=0.3))).adapter.dropout == 0.0  # type: ignore
    assert Head.of(_model(_lora(dropout=0.3))).adapter.dropout == 0.3  # type: ignore
    dora = _lora()
    dora.use_dora = {"default": True}
    with pytest.raises(ModelError, match="DoRA"):
        Head.of(_model(dora))
    other: Any = nn.Module()
    other.base_layer = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="only LoRA"):
        Head.of(_model(other))


def test_an_adapter_moves_with_its_head() -> None:
    head = Head(_made(V, HS), adapter=Adapter(_made(2, HS), _made(V, 2)))
    moved = head.to("cpu")
    torch.testing.assert_close(moved.logits(_made(3, HS)), head.logits(_made(3, HS)))


# -- memory and the weight's gradient -------------------------------------------------------------


def test_a_narrow_gradient_takes_the_wide_ones_place() -> None:
    wide = torch.randn(700, 31)
    expected = wide.bfloat16()
    assert torch.equal(narrowed(wide, torch.bfloat16), expected)


@pytest.mark.parametrize("chunk_count", [1, 3])
def test_bf16_products_are_summed_in_float32(chunk_count: int) -> None:
    torch.manual_seed(0)
    grad, hidden = torch.randn(3000, V).bfloat16(), torch.randn(3000, HS).bfloat16()
    weight = torch.empty(V + 2, HS, dtype=torch.bfloat16)
    sums = WeightGradient(weight, V, torch.bfloat16, chunk_count)
    for part in range(chunk_count):
        rows = slice(part * 1000, (part + 1) * 1000) if chunk_count > 1 else slice(0, 3000)
        sums.add(grad[rows], hidden[rows])
    result = sums.result()
    exact = (grad.double().T @ hidden.double()).bfloat16()
    assert result.dtype == torch.bfloat16
    assert (result[V:] == 0).all()
    torch.testing.assert_close(result[:V], exact, rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("width", [32_000, 151_936, 262_144])
@pytest.mark.parametrize("num_tokens", [0, 1, 512, 8192])
def test_chunks_fill_the_budget_and_no_more(width: int, num_tokens: int) -> None:
    for temporaries in (6, 16):
        made = plan(
            "auto", num_tokens=num_tokens, width=width, row_bytes=8 * width,
            temporaries=temporaries, extra_bytes=num_tokens * 4096, device=torch.device("cpu"),
        )  # fmt: skip
        held = min(made.chunk_tokens, max(1, num_tokens)) * 8 * width
        held += made.block_tokens * width * 4 * temporaries
        assert held <= chunks.CPU_BUDGET_BYTES
        assert made.chunk_tokens <= max(chunks.CPU_MOST_ROWS, made.block_tokens)
        if num_tokens == 8192 and made.chunk_tokens < chunks.CPU_MOST_ROWS:
            assert held > 0.75 * chunks.CPU_BUDGET_BYTES
        covered = [rows.stop - rows.start for rows in made.chunks(num_tokens)]
        assert sum(covered) == num_tokens
