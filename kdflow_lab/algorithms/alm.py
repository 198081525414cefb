"""Approximate likelihood matching: both models' likelihoods of the same pieces of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._options import check_options, sizes
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.errors import ShapeError
from kdflow_lab.losses import per_token
from kdflow_lab.losses._chunked import Work, walked_loss
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._likelihoods import binary_ce, limit
from kdflow_lab.losses._terms import Terms

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.losses import Head, LossOutput


class ALM(Crossing):
    """Compares the likelihoods of pieces: the smallest spans of text that both sides delimit.

    A piece's likelihood is the product of its realised tokens' probabilities. Only these count, not
    the rows: it needs no common token, and teaches less a row than algorithms that see them all.
    The sum over the pieces is divided by all response tokens. `piece_weight="tokens"` counts a
    piece as often as it has student tokens. `aligned` is the share of response tokens in a piece;
    `agreement` is NaN, since the teacher's rows are not looked at.

    Five head products instead of four: the student's log-probabilities are needed before their
    gradient can be known, so its logits are computed twice, a chunk at a time.

    The paper's debiasing of pieces whose end is unequally likely is not part of it.

    Source: approximate likelihood matching, arXiv:2503.20083.
    """

    name = "alm"

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
        pairing: Pairing,
    ) -> LossOutput:
        """See `Algorithm.loss`; arguments as in `BytePrefix.loss`.

        Raises:
            ConfigError: The teacher is missing, or an option means nothing here.
            ShapeError: Rows, hidden sizes or ids do not fit.
        """
        config = self.config
        check_options(self.name, config)
        if teacher_hidden is None or teacher_head is None:
            return without_teacher(config, student_hidden, student_head, labels, num_valid_tokens)
        check_paired_inputs(
            student_hidden, student_head, teacher_hidden, teacher_head, labels, sizes(pairing)
        )
        theirs = torch.from_numpy(pairing.teacher_labels).to(labels.device)
        if len(theirs) and int(pairing.teacher_labels.max()) >= teacher_head.width:
            raise ShapeError(
                f"A token of the teacher's is {int(pairing.teacher_labels.max())}, but its head "
                f"has {teacher_head.width} ids. Expected tokens in the teacher tokenizer's ids."
            )
        chunk = config.chunk_tokens
        ln_q = -per_token(student_hidden, student_head, None, None, labels, chunk_tokens=chunk).ce
        ln_p = -per_token(teacher_hidden, teacher_head, None, None, theirs, chunk_tokens=chunk).ce
        found = pairing.spans
        share = 1.0 / max(1, num_valid_tokens)
        pieces = _pieces(found[:, 2:], len(ln_q)), _pieces(found[:, :2], len(ln_p))
        kd, of_token = self._pieces_loss(ln_q, ln_p, pieces, len(found))
        ratio = config.kd_ratio if torch.is_grad_enabled() else 0.0
        # the loss of a piece moves with each ln q in it, and cross-entropy is -ln q
        weight = (1.0 - config.kd_ratio) * share - ratio * share * of_token
        terms = Terms(ce_weight=weight if torch.is_grad_enabled() else 0.0)
        work = Work(student_head, None, labels, terms, config.kd_ratio, share, chunk, kd=share * kd)
        output = walked_loss(student_hidden, work)
        aligned = float((pieces[0] >= 0).sum()) * share
        return output._replace(extra={"aligned": output.ce.new_tensor(aligned)})

    def _pieces_loss(
        self, ln_q: Tensor, ln_p: Tensor, pieces: tuple[np.ndarray, np.ndarray], number: int
    ) -> tuple[Tensor, Tensor]:
        """Sum over the pieces, and its derivative with respect to each token's ln q, Float[T]."""
        with torch.enable_grad():
            leaf = ln_q.detach().requires_grad_()
            ours = _summed(leaf, pieces[0], number)
            theirs = _summed(ln_p.to(leaf.dtype), pieces[1], number)
            if self.params["comparison"] == "limit":
                value = limit(ours, theirs)
            else:
                value = binary_ce(ours, theirs, float(self.params["tau"]))
            if self.params["piece_weight"] == "tokens":
                counts = np.bincount(pieces[0][pieces[0] >= 0], minlength=number)
                value = value * torch.from_numpy(counts).to(value)
            total = value.sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return total.detach(), gradient


def _pieces(ranges: np.ndarray, num_tokens: int) -> np.ndarray:
    """The piece that each token is in, Int64; -1 for none."""
    piece = np.full(num_tokens, -1, np.int64)
    for number, (first, last) in enumerate(ranges):
        piece[first:last] = number
    return piece


def _summed(logprobs: Tensor, piece: np.ndarray, number: int) -> Tensor:
    """Log-probabilities of the pieces, Float[P]."""
    inside = np.flatnonzero(piece >= 0)
    at = torch.from_numpy(inside).to(logprobs.device)
    of = torch.from_numpy(piece[inside]).to(logprobs.device)
    return logprobs.new_zeros(number).index_add(0, of, logprobs[at])
