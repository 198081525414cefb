"""The byte-prefix target: a teacher's distribution, moved to the tokens of another vocabulary.

Shape suffixes: R tokens of a block, X the teacher's vocabulary, V the student's, N candidates of
all deep rows of a block together.

A row has *depth* d if d bytes of the teacher's token are written when the student's token begins.
At depth 0 every token of the teacher is a candidate. At a greater depth only those that begin with
the written bytes and go on are, and their probabilities are renormalised: that is what the teacher
says of the next bytes, given the ones written. A candidate's probability goes to the longest
student token that is a prefix of its bytes not yet written. What goes nowhere is the residual.

Source: byte-prefix marginalisation, arXiv:2607.22334 (from its abstract); the formulas are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdflow_lab.losses._target import Bucket, Target

RESIDUAL_FLOOR = 1e-6
"""Least mass of the teacher's bucket. Its true residual is often exactly 0, and a divergence that
asks how unlikely the student's outcomes are to the teacher would be infinite."""


class Candidates(NamedTuple):
    """What can follow some written bytes.

    Attributes:
        teacher_ids: Int64[K], the candidates.
        columns: Int64[K], where their mass goes: an id of the student, or V for the residual.
    """

    teacher_ids: Tensor
    columns: Tensor


class PrefixMap:
    """Makes the targets of a micro-batch; a `TargetMap`."""

    def __init__(
        self,
        columns: Tensor,
        student_width: int,
        inside: Sequence[Candidates | None],
        *,
        temperature: float,
        bucket: bool,
    ) -> None:
        """Take what is known of every token.

        Args:
            columns: Int64[X], where each teacher token's mass goes at depth 0: an id of the
                student, or V for the residual.
            student_width: V.
            inside: By token of the micro-batch: the candidates at its depth, None at depth 0.
            temperature: Divides the teacher's logits.
            bucket: Compare the ids that can be reached and one bucket for all others, renormalised;
                otherwise the masses on the ids alone.
        """
        nowhere = columns == student_width
        self._residual_ids = nowhere.nonzero()[:, 0]
        self._columns = columns.masked_fill(nowhere, 0)
        self._width, self._inside = student_width, inside
        self._temperature, self._bucket = temperature, bucket
        self._reached = torch.zeros(student_width + 1, dtype=torch.bool, device=columns.device)
        self._reached[columns] = True
        self._tensors: dict[str, Tensor] = {}
        self.mass = torch.zeros(len(inside), device=columns.device)
        """Float[T], mass that went to the student's ids; 0 where a token has no row."""

    def __call__(self, t_RX: Tensor, tokens: slice, kept_R: Tensor) -> Target:
        """See `TargetMap`: masses Float[R, V], or with the bucket logits Float[R, V + 1]."""
        deep = [(row, one) for row, one in enumerate(self._inside[tokens]) if one is not None]
        if self._temperature != 1.0:
            t_RX.div_(self._temperature)
        p_RX = torch.softmax(t_RX, dim=-1, out=self._tensor("p", t_RX, t_RX.shape[1]))
        residual_R = p_RX[:, self._residual_ids].sum(dim=-1)
        p_RX.index_fill_(1, self._residual_ids, 0.0)
        mass_RV = self._tensor("mass", t_RX, self._width).zero_()
        mass_RV.scatter_add_(1, self._columns.expand(len(t_RX), -1), p_RX)
        places = _take_deep(mass_RV, residual_R, t_RX, deep) if deep else None
        total_R = mass_RV.sum(dim=-1)
        self.mass[tokens] = torch.where(kept_R != 0, total_R, 0.0).to(self.mass.dtype)
        if not self._bucket:
            return Target(mass_RV, kept_R, masses=True)
        reached_RV = self._reached[None, :-1]
        if places is not None:
            deep_rows, rows_N, columns_N = places
            reached_RW = self._reached.repeat(len(t_RX), 1)
            reached_RW[deep_rows] = False
            reached_RW[rows_N, columns_N] = True
            reached_RV = reached_RW[:, :-1]
        return _over_bucket(mass_RV, residual_R, reached_RV, kept_R)

    def _tensor(self, name: str, like: Tensor, width: int) -> Tensor:
        """A tensor of a block that is made once, Float[R, width], with whatever is in it."""
        rows = len(like)
        if name not in self._tensors or len(self._tensors[name]) < rows:
            self._tensors[name] = like.new_empty(rows, width)
        return self._tensors[name][:rows]


def _over_bucket(mass_RV: Tensor, residual_R: Tensor, reached_RV: Tensor, kept_R: Tensor) -> Target:
    """The target with a bucket for what cannot be reached, where there is such a thing."""
    top_R = mass_RV.argmax(dim=-1)
    # probabilities that underflow stand for very small ones, not for impossible tokens
    mass_RV.clamp_(min=torch.finfo(mass_RV.dtype).tiny).masked_fill_(~reached_RV, 0.0)
    everything = reached_RV.all(dim=-1)
    bucket_R = residual_R.clamp(min=RESIDUAL_FLOOR).masked_fill(everything, 0.0)
    logits_RW = torch.cat([mass_RV, bucket_R[:, None]], dim=1).log_()
    return Target(logits_RW, kept_R, view=Bucket(reached_RV), top=top_R, tempered=True)


def _take_deep(
    mass_RV: Tensor,
    residual_R: Tensor,
    t_RX: Tensor,
    deep: Sequence[tuple[int, Candidates]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the masses of deep rows; return these rows, and row and column of every candidate.

    All rows at once, whatever the number of their candidates.
    """
    device, width = t_RX.device, mass_RV.shape[1]
    ids_N = torch.cat([one.teacher_ids for _, one in deep])
    columns_N = torch.cat([one.columns for _, one in deep])
    counts = torch.tensor([len(one.columns) for _, one in deep], device=device)
    which = torch.tensor([row for row, _ in deep], device=device)
    rows_N = which.repeat_interleave(counts, output_size=len(ids_N))
    logits_N = t_RX[rows_N, ids_N]
    largest_R = logits_N.new_zeros(len(t_RX))
    largest_R = largest_R.scatter_reduce(0, rows_N, logits_N, "amax", include_self=False)
    weight_N = (logits_N - largest_R[rows_N]).exp_()
    sums_R = torch.zeros_like(largest_R).index_add_(0, rows_N, weight_N)
    share_N = weight_N / sums_R[rows_N]
    goes_N = (columns_N < width).to(share_N.dtype)
    mass_RV.index_fill_(0, which, 0.0)
    flat = mass_RV.view(-1)
    flat.index_add_(0, rows_N * width + columns_N.clamp(max=width - 1), share_N * goes_N)
    residual_R.index_fill_(0, which, 0.0).index_add_(0, rows_N, share_N * (1.0 - goes_N))
    return which, rows_N, columns_N
