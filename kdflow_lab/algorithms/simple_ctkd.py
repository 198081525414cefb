"""Distillation on the tokens that both tokenizers split alike, over the ids that both have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._options import sizes
from kdflow_lab.algorithms._shared_ids import shared_ids
from kdflow_lab.algorithms._without_teacher import without_teacher
from kdflow_lab.align.pairing import one_to_one
from kdflow_lab.losses._columns import SharedMap
from kdflow_lab.losses._inputs import check_paired_inputs
from kdflow_lab.losses._paired import paired_kd_loss

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.losses import Head, LossOutput


class SimpleCTKD(Crossing):
    """The divergence on the shared ids alone, where one token stands against one token.

    Both distributions are renormalised on the shared ids, so that mass outside them costs nothing
    on either side. Cross-entropy is on all tokens and the whole vocabulary.

    KDFlow's `simple_ctkd` with tokens and ids paired by their bytes instead of their spelling, for
    each row of data by itself, and special tokens by their role. Like there, the sum over the pairs
    is divided by all response tokens: it shrinks with `aligned`, the share that has a pair.

    Source: KDFlow v0.1.3, `simple_ctkd` (commit 3a7a21a).
    """

    name = "simple_ctkd"

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
        config = self.config
        if teacher_hidden is None or teacher_head is None:
            return without_teacher(config, student_hidden, student_head, labels, num_valid_tokens)
        check_paired_inputs(
            student_hidden, student_head, teacher_hidden, teacher_head, labels, sizes(pairing)
        )
        key = student_head.width, teacher_head.width, teacher_hidden.device
        shared = self.kept(key, lambda: shared_ids(self.pair, *key))
        rows = paired_rows(pairing)
        output = paired_kd_loss(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            labels,
            teacher_rows=rows,
            map_target=SharedMap(shared),
            divergence=config.loss,
            params=config.loss_params,
            kd_ratio=config.kd_ratio,
            temperature=config.kd_temperature,
            temperature_squared=config.temperature_squared,
            num_valid_tokens=num_valid_tokens,
            chunk_tokens=config.chunk_tokens,
        )
        aligned = float((rows >= 0).sum()) / max(1, num_valid_tokens)
        return output._replace(extra={"aligned": output.kd.new_tensor(aligned)})


def paired_rows(pairing: Pairing) -> np.ndarray:
    """Int64[T]: the teacher's row where one token stands against one token, else -1."""
    found = one_to_one(pairing.spans)
    rows = np.full(len(pairing.student_start), -1, np.int64)
    rows[found[:, 1]] = found[:, 0]
    return rows
