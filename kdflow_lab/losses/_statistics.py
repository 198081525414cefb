"""What is worth knowing of every token: how both models see it, from hidden states and heads.

Shape suffixes: T tokens, C tokens of a chunk, V vocabulary, K most likely tokens. Logits exist for
one chunk at a time. All logarithms are natural, so that values are in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdflow_lab.losses._chunks import plan
from kdflow_lab.losses._common import kl, log_probabilities
from kdflow_lab.losses._inputs import check_inputs
from kdflow_lab.losses.head import Head

HELD = 10
"""Tensors [C, V] that exist at once: log-probabilities of both, their mean, and temporaries."""


@torch.no_grad()
def token_statistics(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    labels: Tensor,
    *,
    k: int = 10,
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
        chunk_tokens: Rows whose logits are held at once.

    Returns:
        Float32[T] (float64 for float64 hidden states): `forward_kl` KL(teacher || student),
        `reverse_kl`, `jsd` (Jensen-Shannon divergence with equal weights, at most log 2; Lin,
        Divergence measures based on the Shannon entropy, 1991, equation 4.1). For `student_` and
        for `teacher_`: Float[T] `entropy` and `logprob` of the label; Int32[T] `rank` of the label,
        1 for the most likely token; Int32[T, K] `topk_ids` and Float[T, K] `topk_logprobs`, most
        likely first. Without a teacher, only the student's.

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
        student_CV = log_probabilities(student_head.logits(student_hidden[rows]))
        part = _of_one("student", student_CV, labels[rows], k)
        if teacher_hidden is not None and teacher_head is not None:
            logits = teacher_head.logits(teacher_hidden[rows]).to(student_CV.dtype)
            teacher_CV = log_probabilities(logits)
            part |= _of_one("teacher", teacher_CV, labels[rows], k)
            part |= _between(student_CV, teacher_CV)
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _of_one(name: str, logp_CV: Tensor, labels_C: Tensor, k: int) -> dict[str, Tensor]:
    """What one model's log-probabilities say."""
    label_C1 = logp_CV.gather(1, labels_C[:, None])
    top = logp_CV.topk(k, dim=1)
    # probability zero adds nothing to the entropy, instead of 0 * inf = NaN
    entropy = -(logp_CV.exp() * logp_CV.masked_fill(logp_CV.isneginf(), 0.0)).sum(dim=1)
    values = {
        "entropy": entropy,
        "logprob": label_C1[:, 0],
        "rank": 1 + (logp_CV > label_C1).sum(dim=1, dtype=torch.int32),
        "topk_ids": top.indices.to(torch.int32),
        "topk_logprobs": top.values,
    }
    return {f"{name}_{key}": value for key, value in values.items()}


def _between(student_CV: Tensor, teacher_CV: Tensor) -> dict[str, Tensor]:
    """The divergences between the two."""
    mean_CV = torch.logaddexp(student_CV, teacher_CV) - math.log(2)
    return {
        "forward_kl": kl(teacher_CV, student_CV),
        "reverse_kl": kl(student_CV, teacher_CV),
        "jsd": 0.5 * (kl(teacher_CV, mean_CV) + kl(student_CV, mean_CV)),
    }
