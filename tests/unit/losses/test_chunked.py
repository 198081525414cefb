"""The chunked loss against the plain one, and against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import kdflow_lab.losses as losses
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import Head, chunked_kd_loss, divergence

T, HS, HT, V = 13, 6, 10, 17


def _case(dtype=torch.float64, seed=0, tokens=T):
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, HS, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, HS, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True)
    teacher = torch.randn(tokens, HT, dtype=dtype)
    teacher_weight = torch.randn(V, HT, dtype=dtype)
    labels = torch.randint(0, V, (tokens,))
    return hidden, weight, bias, teacher, teacher_weight, labels


def _plain(hidden, weight, bias, teacher, teacher_weight, labels, *, name, ratio, temperature, n):
    """The loss with all logits at once."""
    student = F.linear(hidden, weight, bias)
    ce = F.cross_entropy(student, labels, reduction="sum") / n
    logits = F.linear(teacher, teacher_weight)
    kd = divergence(name, student, logits, temperature=temperature).sum() / n
    return (1 - ratio) * ce + ratio * kd


@pytest.mark.parametrize("name", losses.NAMES)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk", [1, 7, "auto"])
def test_chunked_is_whole(name, ratio, chunk):
    """Loss and every gradient equal the textbook loss for any chunking."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case()
    plain = _plain(
        hidden, weight, bias, teacher, teacher_weight, labels,
        name=name, ratio=ratio, temperature=2.0, n=40,
    )  # fmt: skip
    expected = torch.autograd.grad(3.0 * plain, (hidden, weight, bias))
    output = chunked_kd_loss(
        hidden, Head(weight, bias), teacher, Head(teacher_weight), labels,
        divergence=name, kd_ratio=ratio, temperature=2.0, num_valid_tokens=40, chunk_tokens=chunk,
    )  # fmt: skip
    got = torch.autograd.grad(3.0 * output.loss, (hidden, weight, bias))
    torch.testing.assert_close(output.loss, plain, rtol=1e-12, atol=0)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


# adaptive_kl's weights have no gradient by definition: checked with frozen ones in
# test_divergences.py
@pytest.mark.parametrize("name", [name for name in losses.NAMES if name != "adaptive_kl"])
def test_gradcheck(name):
    """Gradients computed in the forward pass pass torch's own check in float64."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case(tokens=3)

    def loss(h, w, b):
        return chunked_kd_loss(
            h, Head(w, b, logit_scale=0.5, soft_cap=4.0), teacher[:3], Head(teacher_weight), labels,
            divergence=name, kd_ratio=0.7, temperature=1.5, chunk_tokens=2,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_padded_vocabulary_is_cut_on_both_sides():
    """Rows beyond the shared ids take no part and get no gradient."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case()
    labels = labels % 11
    padded = torch.cat([teacher_weight, 50 + torch.zeros(3, HT, dtype=torch.float64)])
    output = chunked_kd_loss(
        hidden, Head(weight, bias).cut(11), teacher, Head(padded).cut(11), labels, kd_ratio=0.5
    )
    plain = _plain(
        hidden, weight[:11], bias[:11], teacher, padded[:11], labels,
        name="forward_kl", ratio=0.5, temperature=1.0, n=T,
    )  # fmt: skip
    torch.testing.assert_close(output.loss, plain)
    (grad,) = torch.autograd.grad(output.loss, weight)
    assert (grad[11:] == 0).all()
    assert (grad[:11] != 0).any()


def test_no_tokens():
    """A rank without a response token adds nothing, and backward still runs."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case(tokens=0)
    output = chunked_kd_loss(
        hidden, Head(weight, bias), teacher, Head(teacher_weight), labels,
        kd_ratio=0.5, num_valid_tokens=9,
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert (weight.grad == 0).all()


def test_frozen_head_gets_no_gradient():
    """Only what requires a gradient costs one."""
    hidden, weight, _, teacher, teacher_weight, labels = _case()
    output = chunked_kd_loss(
        hidden, Head(weight.detach(), None), teacher, Head(teacher_weight), labels, kd_ratio=0.5
    )
    output.loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bf16_sums_in_float32():
    """bf16 hidden states: the sum over many tokens does not stall as a bf16 sum would."""
    torch.manual_seed(0)
    hidden = torch.randn(4096, HS).bfloat16()
    weight = torch.randn(V, HS).bfloat16().requires_grad_()
    labels = torch.randint(0, V, (4096,))
    output = chunked_kd_loss(
        hidden, Head(weight), None, None, labels, kd_ratio=0.0, chunk_tokens=16
    )
    exact = F.cross_entropy(hidden.float() @ weight.float().T, labels)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.item(), rel=3e-3)
    output.loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_agreement_counts_equal_top_tokens():
    """The student's own head as the teacher's agrees everywhere."""
    hidden, weight, *_ = _case()
    output = chunked_kd_loss(hidden, Head(weight), hidden, Head(weight), None, kd_ratio=1.0)
    assert output.agreement.item() == 1.0
    assert output.kd.item() == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(output.ce.item())


def test_per_token_adds_up():
    """The evaluation's walk gives what the training's walk sums."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case()
    heads = Head(weight, bias), Head(teacher_weight)
    output = chunked_kd_loss(hidden, heads[0], teacher, heads[1], labels, kd_ratio=0.5)
    tokens = losses.per_token(hidden, heads[0], teacher, heads[1], labels, chunk_tokens=5)
    assert tokens.kd.shape == tokens.ce.shape == tokens.agreement.shape == (T,)
    torch.testing.assert_close(tokens.kd.mean(), output.kd)
    torch.testing.assert_close(tokens.ce.mean(), output.ce)
    torch.testing.assert_close(tokens.agreement.mean(), output.agreement)


def test_errors_say_what_to_do():
    """One clear error for each kind of bad input."""
    hidden, weight, bias, teacher, teacher_weight, labels = _case()
    head, teacher_head = Head(weight, bias), Head(teacher_weight)
    with pytest.raises(ConfigError, match="Did you mean 'forward_kl'"):
        chunked_kd_loss(hidden, head, teacher, teacher_head, labels, divergence="forwrd_kl")
    with pytest.raises(ConfigError, match="kd_ratio is 2"):
        chunked_kd_loss(hidden, head, teacher, teacher_head, labels, kd_ratio=2)
    with pytest.raises(ConfigError, match="needs the teacher"):
        chunked_kd_loss(hidden, head, None, None, labels, kd_ratio=0.5)
    with pytest.raises(ConfigError, match="needs labels"):
        chunked_kd_loss(hidden, head, teacher, teacher_head, None, kd_ratio=0.5)
    with pytest.raises(ShapeError, match="one teacher row for each"):
        chunked_kd_loss(hidden, head, teacher[:3], teacher_head, labels)
    with pytest.raises(ShapeError, match="Cut both"):
        chunked_kd_loss(hidden, head, teacher, Head(teacher_weight[:9]), labels)
    with pytest.raises(ShapeError, match="share only"):
        chunked_kd_loss(hidden, head.cut(3), teacher, teacher_head.cut(3), labels)
    with pytest.raises(ShapeError, match="the head expects"):
        chunked_kd_loss(hidden[:, :4], head, teacher, teacher_head, labels)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature"):
            chunked_kd_loss(hidden, head, teacher, teacher_head, labels, temperature=temperature)
    with pytest.raises(ConfigError, match=r"no parameter 'betta'. Did you mean 'beta'"):
        chunked_kd_loss(hidden, head, teacher, teacher_head, labels, divergence="jsd", betta=0.5)
    with pytest.raises(ConfigError, match="chunk_tokens is 0"):
        chunked_kd_loss(hidden, head, teacher, teacher_head, labels, chunk_tokens=0)
