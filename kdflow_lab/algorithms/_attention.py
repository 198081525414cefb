"""Cross-model attention: every token of one model over all tokens of the other's same answer.

Shape suffixes: T the student's response tokens, U the teacher's, n and m those of one answer, d and
D the widths.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.losses import Head
    from kdflow_lab.losses._dual_space import DualProjectors


def attend(
    projectors: DualProjectors,
    student: tuple[Tensor, Head, Tensor],
    teacher: tuple[Tensor, Head, Tensor],
    pairing: Pairing,
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """See each model's rows at the other one's tokens.

    Scores are queries of the student's tokens against keys of the teacher's, divided by sqrt(2D); a
    token is the head's rows of the token before it and of itself, side by side, without a gradient.
    The token before the first of an answer, which belongs to the prompt, is taken as zeros.
    Held until backward: [n, m] scores of every answer.

    Args:
        projectors: With a query.
        student: Rows Float[T, d], head, labels Int64[T].
        teacher: Rows Float[U, D], head, labels Int64[U].
        pairing: Says which tokens are of one answer.

    Returns:
        Float[T', d], Float[U', D], and which tokens these are, Int64[T'] and Int64[U']: those of
        answers that both sides have.

    Source: DSKD, arXiv:2406.17328, section 3.3 (cross-model attention).
    """
    (student_hidden, student_head, labels), (teacher_hidden, teacher_head, theirs) = (
        student,
        teacher,
    )
    seen_d = projectors.teacher_seen(teacher_hidden).to(student_hidden.dtype)
    seen_D = projectors.student_seen(student_hidden)
    # ranks without an answer have gradients too, of zero: FSDP2 reduces the same ones on every rank
    no_query = projectors.queries(seen_d.new_zeros(0, 2 * seen_d.shape[1]))
    nothing_d = no_query @ seen_d.new_zeros(no_query.shape[1], seen_d.shape[1])
    at_student, at_teacher, ours, others = [seen_d[:0], nothing_d], [seen_D[:0]], [], []
    for sample in np.intersect1d(pairing.student_sample, pairing.teacher_sample):
        rows = np.flatnonzero(pairing.student_sample == sample)
        columns = np.flatnonzero(pairing.teacher_sample == sample)
        n = torch.from_numpy(rows).to(labels.device)
        m = torch.from_numpy(columns).to(labels.device)
        queries = projectors.queries(_tokens(student_head, labels[n]).to(seen_d.dtype))
        keys = _tokens(teacher_head, theirs[m]).to(seen_d.dtype)
        scores = (queries @ keys.t()) / math.sqrt(keys.shape[1])
        at_student.append(scores.softmax(dim=1) @ seen_d[m])
        at_teacher.append(scores.t().softmax(dim=1) @ seen_D[n])
        ours.append(rows)
        others.append(columns)
    nothing = np.empty(0, np.int64)
    return (
        torch.cat(at_student),
        torch.cat(at_teacher),
        np.concatenate([nothing, *ours]),
        np.concatenate([nothing, *others]),
    )


def _tokens(head: Head, labels: Tensor) -> Tensor:
    """Float[n, 2H]: the head's rows of the token before and of the token."""
    rows = head.weight.detach()[labels]
    if head.adapter is not None:
        rows = rows + head.adapter.b.detach()[labels] @ head.adapter.a.detach()
    before = torch.cat([torch.zeros_like(rows[:1]), rows[:-1]])
    return torch.cat([before, rows], dim=1)
