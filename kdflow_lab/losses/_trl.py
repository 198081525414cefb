"""ULD and GOLD as TRL 1.16 computes them, for comparison; `_ranked` has what they should be.

Shape suffixes: n tokens of an answer, V the student's vocabulary, X the teacher's, G groups.

A group of tokens i..j that two tokenizers split differently becomes one row: one token's
distribution times the probabilities of other realised tokens (at least 1e-8). `bayesian` takes the
last token's distribution and the probabilities of those before it; `observed` the first one's and
those of the later ones, and reads all of them one position late. Neither row sums to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdflow_lab.losses._columns import Shared
from kdflow_lab.losses._ranked import sorted_l1

FLOOR = 1e-8
"""Least probability that is multiplied or goes into a logarithm."""

Group = tuple[slice, slice]
"""Tokens of the student and of the teacher that belong together."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What GOLD adds to ULD.

    Attributes:
        shared: The shared ids.
        rest: Int64, the other ids of the student and of the teacher.
        beta: From 0 to 1; weights the teacher.
        weights: Of the shared part and of the rest.
    """

    shared: Shared
    rest: tuple[Tensor, Tensor]
    beta: float
    weights: tuple[float, float]


def merged_rows(
    probabilities: Tensor, labels: Tensor, groups: Sequence[slice], strategy: str
) -> Tensor:
    """One row for each group, Float[G, V].

    Args:
        probabilities: Float[n, V].
        labels: Int64[n], the realised tokens.
        groups: Tokens of each group.
        strategy: `observed` or `bayesian`.
    """
    realised = probabilities.gather(1, labels[:, None])[:, 0].clamp(min=FLOOR)
    rows = []
    for group in groups:
        first, last = group.start, group.stop - 1
        if strategy == "bayesian":
            rows.append(probabilities[last] * realised[first:last].prod())
        else:
            rows.append(probabilities[first] * realised[first + 1 : last + 1].prod())
    return torch.stack(rows) if rows else probabilities[:0]


def grouped_distance(student_GV: Tensor, teacher_GX: Tensor, hybrid: Hybrid | None) -> Tensor:
    """ULD of merged rows, or with `hybrid` GOLD's two parts, Float[G]."""
    if hybrid is None:
        return sorted_l1(student_GV, teacher_GX)
    p = teacher_GX[:, hybrid.shared.teacher_ids].clamp(min=FLOOR)
    q = student_GV[:, hybrid.shared.student_ids].clamp(min=FLOOR)
    beta = hybrid.beta
    if beta == 0.0:
        matched = (p * (p / q).log()).sum(dim=-1)
    elif beta == 1.0:
        matched = (q * (q / p).log()).sum(dim=-1)
    else:
        m = beta * p + (1.0 - beta) * q
        matched = (beta * p * (p / m).log() + (1.0 - beta) * q * (q / m).log()).sum(dim=-1)
    ours, theirs = hybrid.rest
    # TRL leaves the part out where a side has no other ids, instead of filling with zeros
    if not len(ours) or not len(theirs):
        return hybrid.weights[0] * matched
    ranked = sorted_l1(student_GV[:, ours], teacher_GX[:, theirs])
    return hybrid.weights[0] * matched + hybrid.weights[1] * ranked
