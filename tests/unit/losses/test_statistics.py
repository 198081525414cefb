"""What is said of every token, against the formulas as they are written, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import Head, token_statistics

T, V = 11, 17


@pytest.fixture
def case() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "student_hidden": normal(T, 4),
        "student_head": Head(normal(V + 3, 4), vocab_size=V),
        "teacher_hidden": normal(T, 6),
        "teacher_head": Head(normal(V, 6), soft_cap=5.0),
        "labels": torch.randint(V, (T,), generator=generator),
    }


@pytest.mark.parametrize("chunk_tokens", [1, 4, "auto"])
def test_values_are_those_of_the_formulas(case: dict[str, Any], chunk_tokens: Any) -> None:
    found = token_statistics(**case, k=3, chunk_tokens=chunk_tokens)
    ours = case["student_hidden"] @ case["student_head"].weight[:V].T
    theirs = 5.0 * torch.tanh(case["teacher_hidden"] @ case["teacher_head"].weight.T / 5.0)
    q, p = ours.softmax(-1), theirs.softmax(-1)
    m = (p + q) / 2
    expected = {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }
    for name, probability, logits in (("student", q, ours), ("teacher", p, theirs)):
        label = probability[torch.arange(T), case["labels"]]
        top = probability.sort(descending=True)
        expected |= {
            f"{name}_entropy": -(probability * probability.log()).sum(-1),
            f"{name}_logprob": label.log(),
            f"{name}_logit": logits[torch.arange(T), case["labels"]],
            f"{name}_rank": (probability >= label[:, None]).sum(-1).int(),
            f"{name}_topk_ids": top.indices[:, :3].int(),
            f"{name}_topk_logprobs": top.values[:, :3].log(),
        }
    for name, probability, other in (("student", q, "teacher"), ("teacher", p, "student")):
        listed = expected[f"{other}_topk_ids"].long()
        expected[f"{name}_logprobs_of_{other}_topk"] = probability.gather(1, listed).log()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-10, atol=1e-12, msg=name)


def test_disjoint_distributions_and_masked_tokens_are_finite() -> None:
    """Jensen-Shannon reaches its bound log 2, and 0 * log 0 is 0."""
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    eye = Head(torch.eye(2))
    # -inf times zero is NaN in a product: the logits come as a bias
    hidden = torch.zeros(1, 2)
    found = token_statistics(
        hidden,
        Head(eye.weight, bias=student[0]),
        hidden,
        Head(eye.weight, bias=teacher[0]),
        torch.tensor([0]),
    )
    assert found["jsd"].item() == pytest.approx(math.log(2))
    assert found["forward_kl"].item() == math.inf
    assert found["student_entropy"].item() == found["teacher_entropy"].item() == 0.0
    assert (found["student_rank"].item(), found["teacher_rank"].item()) == (1, 2)
    assert found["student_topk_ids"].shape == (1, 2), "no more than there are"


def test_without_a_teacher_only_the_student_is_described(case: dict[str, Any]) -> None:
    whole = token_statistics(**case)
    alone = token_statistics(**{**case, "teacher_hidden": None, "teacher_head": None})
    of_student = {name for name in whole if name.startswith("student") and "_of_" not in name}
    assert alone.keys() == of_student
    assert all(torch.equal(values, whole[name]) for name, values in alone.items())
    with pytest.raises(ConfigError, match="needs the teacher's hidden states and head"):
        token_statistics(**{**case, "teacher_head": None})


def test_no_tokens_give_arrays_of_the_same_kinds(case: dict[str, Any]) -> None:
    """A rank whose micro-batch is empty must know what the others send."""
    whole = token_statistics(**case)
    empty: dict[str, Any] = {
        name: value[:0] if isinstance(value, Tensor) else value for name, value in case.items()
    }
    for name, values in token_statistics(**empty).items():
        assert (values.dtype, values.shape) == (whole[name].dtype, (0, *whole[name].shape[1:]))
