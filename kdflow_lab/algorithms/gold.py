"""GOLD: a divergence on the ids that both vocabularies have, ULD on the others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._ranked import ranked_loss
from kdflow_lab.algorithms._shared_ids import shared_ids
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.errors import ConfigError
from kdflow_lab.losses._ranked import matched_and_ranked
from kdflow_lab.losses._trl import Hybrid

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


class GOLD(Crossing):
    """matched_weight * (divergence on the shared ids) + unmatched_weight * (ULD on all others).

    The weights are K / X and 1 - K / X for K shared ids of X of the teacher, or two numbers. The
    divergence on the shared ids is a partial sum with `beta` as in `jsd` (0: forward KL, 1:
    reverse KL), not renormalised, so it can be negative.

    This is TRL's GOLD corrected: rows where both sides begin a common span of text, each the
    prediction of that token; ids matched by bytes and role; no floor under probabilities; zeros
    where a side has no other ids; the sum divided by all response tokens of the batch.
    `variant="trl"` computes it as TRL 1.16 does, with its `strategy` (see `losses/_trl.py`), except
    that ids are matched by bytes and that the sum is divided by all response tokens instead of a
    mean of means; it holds the logits of the micro-batch, [T, V] and [U, X].

    Source: TRL 1.16, `trl/experimental/gold`.
    """

    name = "gold"

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`.

        Raises:
            ConfigError: An option means nothing here, or only one of the two weights is given.
        """
        super().__init__(config)
        weights = self.params["matched_weight"], self.params["unmatched_weight"]
        if (weights[0] is None) != (weights[1] is None):
            raise ConfigError(
                f"gold: matched_weight is {weights[0]}, unmatched_weight is {weights[1]}. Give "
                "both or neither; without them the weights follow the share of shared ids."
            )

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
            ConfigError: `meet` was not called, or the teacher is missing, or no id is shared.
            ShapeError: Rows, hidden sizes or ids do not fit.
        """
        if teacher_hidden is None or teacher_head is None:
            return without_teacher(
                self.config, student_hidden, student_head, labels, num_valid_tokens
            )
        hybrid = self._hybrid(student_head, teacher_head, student_hidden.device)
        return ranked_loss(
            self,
            partial(
                matched_and_ranked,
                shared=hybrid.shared,
                rest=hybrid.rest,
                beta=hybrid.beta,
                weights=hybrid.weights,
            ),
            hybrid.shared.counterpart,
            hybrid,
            student=(student_hidden, student_head),
            teacher=(teacher_hidden, teacher_head),
            labels=labels,
            num_valid_tokens=num_valid_tokens,
            pairing=pairing,
        )

    def _hybrid(self, student: Head, teacher: Head, device: torch.device) -> Hybrid:
        """The ids of both parts and their weights for heads of these widths."""
        key = student.width, teacher.width, device

        def make() -> Hybrid:
            shared = shared_ids(self.pair, *key)
            matched, unmatched = self.params["matched_weight"], self.params["unmatched_weight"]
            if matched is None:
                matched = len(shared.teacher_ids) / teacher.width
                unmatched = 1.0 - matched
            rest = (
                _others(shared.student_ids, student.width),
                _others(shared.teacher_ids, teacher.width),
            )
            return Hybrid(
                shared, rest, float(self.params["beta"]), (float(matched), float(unmatched))
            )

        return self.kept(key, make)


def _others(ids: Tensor, width: int) -> Tensor:
    """The ids below `width` that are not listed, Int64."""
    left = torch.ones(width, dtype=torch.bool, device=ids.device)
    left[ids] = False
    return left.nonzero()[:, 0]
