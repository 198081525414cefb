"""On-policy distillation as a policy gradient: sampled tokens, each with its advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from kdflow_lab.algorithms._options import check_options
from kdflow_lab.algorithms.names import check_algorithm_params
from kdflow_lab.errors import ConfigError, ShapeError
from kdflow_lab.losses import k1, k2, k3, per_token
from kdflow_lab.losses._chunked import Work, walked_loss
from kdflow_lab.losses._inputs import check_inputs
from kdflow_lab.losses._terms import Terms

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
TINY = 1e-8
"""Added to a standard deviation that is divided by."""


class Surrogate(NamedTuple):
    """The clipped surrogate of T sampled tokens, each Float[T].

    Attributes:
        value: What is minimised.
        slope: Its derivative with respect to each token's log-probability.
        clipped: 1 where the ratio was clipped and the token teaches nothing, else 0.
    """

    value: Tensor
    slope: Tensor
    clipped: Tensor


class PolicyGradient:
    """Makes sampled tokens likelier that the teacher finds likelier than the student did.

    With x_t sampled by p_old, the student of some steps ago (the present one if strictly
    on-policy), the advantage of a token is A_t = ln p_T(x_t) - ln p_old(x_t), its ratio
    r_t = p_S(x_t) / p_old(x_t), and the loss -min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t),
    summed and divided by the response tokens of the whole batch. Where nothing is clipped, and
    tokens are drawn at temperature 1 without filters, the expectation of its gradient is that of
    the reverse KL at each position, as `vanilla_kd` with `reverse_kl` computes it from the whole
    vocabulary without that noise. What a token changes for the tokens behind it is left out, as in
    both sources of the method.

    `kd` is not the surrogate's value but the ratio times an estimate of the reverse KL, chosen by
    `estimator` (`kdflow_lab.losses._sampled`): k1 and k3 are unbiased, k3 varies less. The
    advantage is that of k1 in any case: as a reward the others have another gradient. `clipped` is
    the share of tokens that were clipped. `agreement` is NaN, since only the sampled tokens'
    probabilities are looked at. `whiten` gives the advantages of a micro-batch mean 0 and standard
    deviation 1: then the loss depends on how a batch is split.

    Five head products instead of four, as in `ALM`: the student's logits are computed twice.

    Source: the clipped surrogate PPO, arXiv:1707.06347, equation 7; the advantage Lu and Thinking
    Machines Lab, On-policy distillation, 2025, and the single-step part of MiniLLM,
    arXiv:2306.08543, section 2.2; why k1 Tang and Munos, arXiv:2506.09477.
    """

    needs_teacher = True
    needs_logprobs = True
    crosses_tokenizers = False

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`.

        Raises:
            ConfigError: An option means nothing here, or a parameter does not fit.
        """
        if config.hidden_loss != "none":
            raise ConfigError(
                f"The algorithm 'policy_gradient' has no use for hidden_loss={config.hidden_loss!r}"
                ". Leave the option out, or use algorithm='vanilla_kd'."
            )
        check_options("policy_gradient", config)
        self.config = config
        self.params = check_algorithm_params("policy_gradient", config.algorithm_params)

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
        logprobs: Tensor | None = None,
    ) -> LossOutput:
        """See `Algorithm.loss`.

        Args:
            student_hidden: Float[T, Hs].
            student_head: See there.
            teacher_hidden: Float[T, Ht].
            teacher_head: See there.
            labels: Int64[T], the sampled tokens.
            num_valid_tokens: Response tokens of the whole global batch.
            logprobs: Float[T], nats: of the labels under the weights that sampled them.

        Raises:
            ConfigError: The teacher or the log-probabilities are missing, or an option means
                nothing here.
            ShapeError: Rows, hidden sizes, vocabularies or log-probabilities do not fit.
        """
        config = self.config
        check_options("policy_gradient", config)
        # the advantage needs the teacher, whatever its weight
        check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, 0.5)
        assert teacher_hidden is not None and teacher_head is not None
        old = _sampled(logprobs, labels)
        chunk = config.chunk_tokens
        ln_q = -per_token(student_hidden, student_head, None, None, labels, chunk_tokens=chunk).ce
        ln_p = -per_token(teacher_hidden, teacher_head, None, None, labels, chunk_tokens=chunk).ce
        old, ln_p = old.to(ln_q.dtype), ln_p.to(ln_q.dtype)
        advantage = -k1(old, ln_p)
        if self.params["whiten"]:
            advantage = _whitened(advantage)
        found = surrogate(ln_q, old, advantage, clip=float(self.params["clip"]))
        share, ratio = 1.0 / max(1, num_valid_tokens), config.kd_ratio
        # cross-entropy is -ln q
        weight = share * ((1.0 - ratio) - ratio * found.slope)
        terms = Terms(ce_weight=weight if torch.is_grad_enabled() else 0.0)
        kd = share * found.value.sum()
        output = walked_loss(
            student_hidden, Work(student_head, None, labels, terms, ratio, share, chunk, kd=kd)
        )
        estimate = (ln_q - old).exp() * ESTIMATORS[self.params["estimator"]](ln_q, ln_p)
        return output._replace(
            kd=share * estimate.sum(), extra={"clipped": share * found.clipped.sum()}
        )


def surrogate(
    logprobs: Tensor, sampled_logprobs: Tensor, advantage: Tensor, *, clip: float
) -> Surrogate:
    """PPO's clipped surrogate as a loss, with its derivative.

    Args:
        logprobs: Float[T], of the student that is trained, nats.
        sampled_logprobs: Float[T], of the student that sampled.
        advantage: Float[T].
        clip: How far the ratio of the two may be from 1, above 0.

    Source: PPO, arXiv:1707.06347, equation 7, with the sign of a loss.
    """
    ratio = (logprobs.detach() - sampled_logprobs).exp()
    inside = ratio.clamp(1.0 - clip, 1.0 + clip)
    value = -torch.minimum(ratio * advantage, inside * advantage)
    # further away in the direction that the advantage asks for: the minimum is the constant side
    clipped = torch.where(advantage > 0, ratio > 1.0 + clip, ratio < 1.0 - clip)
    clipped &= advantage != 0
    slope = torch.where(clipped, 0.0, -ratio * advantage)
    return Surrogate(value, slope, clipped.to(value.dtype))


def _whitened(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1; one value alone has neither, and stays."""
    if values.numel() < 2:
        return values
    return (values - values.mean()) / (values.std() + TINY)


def _sampled(logprobs: Tensor | None, labels: Tensor) -> Tensor:
    """The log-probabilities of the sampler, checked."""
    if logprobs is None:
        raise ConfigError(
            "policy_gradient weighs each token by the log-probability with which the student "
            "sampled it, and these tokens were not sampled by it. Use on_policy=True with lmbda=1, "
            "or another algorithm."
        )
    if logprobs.shape != labels.shape:
        raise ShapeError(
            f"logprobs are {tuple(logprobs.shape)}, labels {tuple(labels.shape)}; expected one "
            "log-probability of the sampler for each label."
        )
    return logprobs
