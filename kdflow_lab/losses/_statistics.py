"""What is worth knowing of every token: how both models see it, from hidden states and heads.

Shape suffixes: T tokens, C tokens of a chunk, V vocabulary, K most likely tokens. Logits exist for
one chunk at a time. All logarithms are natural, so that values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses._common import kl, log_probabilities
from kdflow_lab.losses._inputs import check_inputs
from kdflow_lab.losses.head import Head

HELD = 10
"""Tensors [C, V] that exist at once: (log-)probabilities of both, logits or mean, temporaries."""
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@torch.no_grad()
def token_statistics(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    *,
    k: int = 10,
    divergences: Sequence[str] = DIVERGENCES,
    chunk_tokens: int | Literal["auto"] = "auto",
) -> dict[str, Tensor]:
    """Describe both models' next-token distributions at temperature 1.

    Args:
        student_hidden: Float[T, Hs], final-norm rows; T may be 0.
        student_head: Of the student.
        teacher_hidden: Float[T, Ht], or None without a teacher.
        teacher_head: Cut to the same width as the student's; None without a teacher.
        labels: Int64[T], the tokens that really come next.
        k: Most likely tokens that are listed; at most the vocabulary.
        divergences: Which of them are computed.
        chunk_tokens: Rows whose logits are held at once.

    Returns:
        Float32[T] (float64 for float64 hidden states): `forward_kl` KL(teacher || student),
        `reverse_kl`, `jsd` (Jensen-Shannon divergence with equal weights, at most log 2; Lin,
        Divergence measures based on the Shannon entropy, 1991, equation 4.1). For `student_` and
        for `teacher_`: Float[T] `entropy`, and `logprob` and `logit` of the label (the logit with
        the head's scale and soft-cap); Int32[T] `rank` of the label, 1 for the most likely token;
        Int32[T, K] `topk_ids` and Float[T, K] `topk_logprobs`, most likely first. Float[T, K]
        `student_logprobs_of_teacher_topk` and `teacher_logprobs_of_student_topk`: what either gives
        to the other's list. Without a teacher, only what is the student's alone.

    Raises:
        ConfigError: Rows without a head or the other way round.
        ShapeError: Rows, hidden sizes or vocabularies do not fit.
    """
    kd_ratio = 0.0 if teacher_hidden is None and teacher_head is None else 0.5
    check_inputs(student_hidden, student_head, teacher_hidden, teacher_head, labels, kd_ratio)
    k = min(k, student_head.width)
    chunking = plan(
        chunk_tokens,
        num_tokens=student_hidden.shape[0],
        width=student_head.width,
        row_bytes=HELD * student_head.width * max(4, student_hidden.dtype.itemsize),
        temporaries=0,
        device=student_hidden.device,
    )
    parts: list[dict[str, Tensor]] = []
    # without tokens, one empty chunk gives every array its dtype and shape
    for rows in [*chunking.chunks(student_hidden.shape[0])] or [slice(0, 0)]:
        logits = student_head.logits(student_hidden[rows])
        student, part = _of_one("student", logits, labels[rows], k)
        if teacher_hidden is not None and teacher_head is not None:
            logits = teacher_head.logits(teacher_hidden[rows]).to(student.logp_CV.dtype)
            teacher, teachers = _of_one("teacher", logits, labels[rows], k)
            theirs, ours = teachers["teacher_topk_ids"].long(), part["student_topk_ids"].long()
            part |= teachers | {name: _BETWEEN[name](student, teacher) for name in divergences}
            part["student_logprobs_of_teacher_topk"] = student.logp_CV.gather(1, theirs)
            part["teacher_logprobs_of_student_topk"] = teacher.logp_CV.gather(1, ours)
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Side(NamedTuple):
    """One model's distributions."""

    logp_CV: Tensor
    p_CV: Tensor


def _of_one(
    name: str, logits_CV: Tensor, labels_C: Tensor, k: int
) -> tuple[_Side, dict[str, Tensor]]:
    """One model's distributions, and what they say."""
    logp_CV = log_probabilities(logits_CV)
    p_CV = logp_CV.exp()
    label_C1 = logp_CV.gather(1, labels_C[:, None])
    top = logp_CV.topk(k, dim=1)
    values = {
        "entropy": -_expected(p_CV, logp_CV),
        "logprob": label_C1[:, 0],
        "logit": logits_CV.gather(1, labels_C[:, None])[:, 0],
        "rank": 1 + (logp_CV > label_C1).sum(dim=1, dtype=torch.int32),
        "topk_ids": top.indices.to(torch.int32),
        "topk_logprobs": top.values,
    }
    return _Side(logp_CV, p_CV), {f"{name}_{key}": value for key, value in values.items()}


def _expected(p_CV: Tensor, values_CV: Tensor) -> Tensor:
    """Sum of p times values, Float[C]; probability zero adds nothing, instead of 0 * inf = NaN."""
    expected = torch.linalg.vecdot(p_CV, values_CV)
    if bool(expected.isfinite().all()):
        return expected
    return (p_CV * values_CV.masked_fill(p_CV == 0, 0.0)).sum(dim=1)


def _kl(a: _Side, b_logp_CV: Tensor) -> Tensor:
    """`_common.kl` with the probabilities that are there already; half its time (measured)."""
    found = torch.linalg.vecdot(a.p_CV, a.logp_CV - b_logp_CV)
    return found if bool(found.isfinite().all()) else kl(a.logp_CV, b_logp_CV)


def _jsd(student: _Side, teacher: _Side) -> Tensor:
    mean_CV = torch.logaddexp(student.logp_CV, teacher.logp_CV) - math.log(2)
    return 0.5 * (_kl(teacher, mean_CV) + _kl(student, mean_CV))


_BETWEEN: dict[str, Callable[[_Side, _Side], Tensor]] = {
    "forward_kl": lambda student, teacher: _kl(teacher, student.logp_CV),
    "reverse_kl": lambda student, teacher: _kl(student, teacher.logp_CV),
    "jsd": _jsd,
}
"""The divergences between student and teacher."""
