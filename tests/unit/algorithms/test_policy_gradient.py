"""The policy gradient against the reverse KL that it estimates: expectations are summed exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from kdflow_lab.algorithms.policy_gradient import PolicyGradient, surrogate
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import Head, LossOutput, divergence, per_token

V, T, HS, HT = 7, 5, 3, 4


@dataclasses.dataclass
class Case:
    """Rows and heads of both sides, in float64; the student's require gradients."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    sampled: Tensor

    def loss(self, rows: Any = slice(None), labels: Tensor | None = None, **options: Any) -> Any:
        algorithm = _algorithm(**options.pop("config", {}))
        return algorithm.loss(
            self.hidden[rows],
            Head(self.weight),
            self.teacher_hidden[rows],
            Head(self.teacher_weight),
            self.labels[rows] if labels is None else labels,
            num_valid_tokens=options.pop("num_valid_tokens", T),
            logprobs=options.pop("logprobs", self.sampled[rows]),
        )

    def gradient(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.hidden, self.weight]))

    def logits(self) -> tuple[Tensor, Tensor]:
        return self.hidden @ self.weight.T, self.teacher_hidden @ self.teacher_weight.T


def _algorithm(**options: Any) -> PolicyGradient:
    return PolicyGradient(
        DistillConfig(
            **{"algorithm": "policy_gradient", "on_policy": True, "kd_ratio": 1.0, **options}
        )
    )


@pytest.fixture
def case() -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = Case(
        normal(T, HS).requires_grad_(),
        normal(V, HS).requires_grad_(),
        normal(T, HT),
        normal(V, HT),
        torch.randint(V, (T,), generator=generator),
        torch.empty(0),
    )
    made.sampled = _of_labels(made.logits()[0].detach(), made.labels)
    return made


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expectation_is_value_and_gradient_of_the_reverse_kl(case: Case, estimator: str) -> None:
    """Every token of the vocabulary, weighed by its probability; k2's value alone is biased."""
    student, teacher = case.logits()
    q = student.detach().softmax(-1)
    kl = divergence("reverse_kl", student, teacher).mean()
    gradients = [torch.zeros_like(case.hidden), torch.zeros_like(case.weight)]
    value = torch.zeros((), dtype=torch.float64)
    config = {"algorithm_params": {"estimator": estimator}}
    for row in range(T):
        for token in range(V):
            found = case.loss(
                [row],
                torch.tensor([token]),
                logprobs=q[row, token].log()[None],
                config=config,
            )
            value += q[row, token] * found.kd
            for total, one in zip(gradients, case.gradient(found.loss), strict=True):
                total += q[row, token] * one
    for ours, right in zip(gradients, case.gradient(kl), strict=True):
        torch.testing.assert_close(ours, right)
    if estimator != "k2":
        torch.testing.assert_close(value, kl.detach())


def test_importance_weights_correct_for_an_older_sampler(case: Case) -> None:
    """Drawn from another distribution; nothing is clipped."""
    student, teacher = case.logits()
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(T, V, generator=generator, dtype=torch.float64).log_softmax(-1)
    gradients = [torch.zeros_like(case.hidden), torch.zeros_like(case.weight)]
    for row in range(T):
        for token in range(V):
            found = case.loss(
                [row],
                torch.tensor([token]),
                logprobs=old[row, token][None],
                config={"algorithm_params": {"clip": 1e6}},
            )
            for total, one in zip(gradients, case.gradient(found.loss), strict=True):
                total += old[row, token].exp() * one
    advantage = (teacher.log_softmax(-1) - old).detach()
    expected = -(student.softmax(-1) * advantage).sum(-1).mean()  # with the sampler's advantage
    for ours, right in zip(gradients, case.gradient(expected), strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("kd_ratio", [1.0, 0.3])
@pytest.mark.parametrize("whiten", [False, True])
def test_gradient_is_that_of_the_value(case: Case, kd_ratio: float, whiten: bool) -> None:
    """Some ratios are clipped, on both sides, none lies on a corner."""
    generator = torch.Generator().manual_seed(3)
    apart = torch.randn(T, generator=generator, dtype=torch.float64) * 0.4
    options = {"kd_ratio": kd_ratio, "algorithm_params": {"whiten": whiten}}

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        other = dataclasses.replace(case, hidden=hidden, weight=weight)
        return other.loss(logprobs=case.sampled + apart, config=options).loss

    assert torch.autograd.gradcheck(loss, (case.hidden, case.weight))
    found = case.loss(logprobs=case.sampled + apart, config=options)
    assert 0 < float(found.extra["clipped"]) < 1


def test_value_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.5])
    advantage = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, 0.0])
    found = surrogate(ratio.log(), torch.zeros(6), advantage, clip=0.2)
    torch.testing.assert_close(found.value, torch.tensor([-2.0, -2.4, 3.0, -1.0, 1.6, 0.0]))
    torch.testing.assert_close(found.slope, torch.tensor([-2.0, 0.0, 3.0, -1.0, 0.0, 0.0]))
    assert found.clipped.tolist() == [0, 1, 0, 0, 1, 0]


def test_micro_batches_and_chunks_add_up(case: Case) -> None:
    """An empty micro-batch, too, which a rank without rows runs."""
    whole = case.loss()
    parts: list[LossOutput] = [
        case.loss(rows, config={"chunk_tokens": 1}) for rows in (slice(0, 2), slice(2, T), slice(0))
    ]
    for name in ("loss", "kd", "ce"):
        total = torch.stack([getattr(one, name) for one in parts]).sum()
        torch.testing.assert_close(total, getattr(whole, name))
    assert sum(float(one.extra["clipped"]) for one in parts) == float(whole.extra["clipped"]) == 0
    sums = [sum(both) for both in zip(*(case.gradient(one.loss) for one in parts), strict=True)]
    torch.testing.assert_close(sums, case.gradient(whole.loss))


def test_cross_entropy_is_mixed_in_and_evaluation_has_no_gradient(case: Case) -> None:
    ce = per_token(case.hidden, Head(case.weight), None, None, case.labels).ce.mean()
    only = case.loss(config={"kd_ratio": 0.0})
    torch.testing.assert_close(only.loss.detach(), ce)
    mixed, pure = case.loss(config={"kd_ratio": 0.25}), case.loss()
    torch.testing.assert_close(mixed.loss, 0.75 * only.loss + 0.25 * pure.loss)
    with torch.no_grad():
        torch.testing.assert_close(case.loss().loss, pure.loss.detach())


def test_what_does_not_fit_is_said(case: Case) -> None:
    with pytest.raises(ConfigError, match="not sampled by it"):
        case.loss(logprobs=None)
    with pytest.raises(ShapeError, match="one log-probability of the sampler for each label"):
        case.loss(logprobs=case.sampled[1:])
    with pytest.raises(ConfigError, match="no use for hidden_loss"):
        _algorithm(hidden_loss="mse")
    with pytest.raises(ConfigError, match="loss of its own"):
        _algorithm(loss="jsd")
    with pytest.raises(ConfigError, match="Did you mean 'whiten'"):
        _algorithm(algorithm_params={"whitn": True})
    with pytest.raises(ConfigError, match="needs the teacher's hidden states"):
        _algorithm().loss(
            case.hidden, Head(case.weight), None, None, case.labels, num_valid_tokens=T
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_policy": False}, "only from tokens that the student sampled"),
        ({"lmbda": 0.5}, "only from tokens that the student sampled"),
        ({"sampling_temperature": 0}, "drawn at random"),
    ],
)
def test_runs_that_sample_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DistillConfig.parse(algorithm="policy_gradient", **{"on_policy": True, **options})
