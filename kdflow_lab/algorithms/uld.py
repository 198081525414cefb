"""Universal logit distillation: probabilities by their rank, whatever they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.algorithms._crossing import Crossing
from kdflow_lab.algorithms._ranked import ranked_loss
from kdflow_lab.algorithms._shared_ids import counterparts
from kdflow_lab.losses._ranked import uld

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.losses import Head, LossOutput


class ULD(Crossing):
    """Sum of the differences of both models' sorted probabilities.

    A baseline: it teaches how sure to be, not of what. Rows are those where both sides begin a span
    of text that both delimit (`align="spans"`), or the n-th tokens of both answers as in the paper
    (`align="position"`). `skip_eos` leaves the end of the answer out. `variant="trl"` computes it
    as TRL 1.16 does (see `losses/_trl.py`), but divides by all response tokens; it holds the
    logits of the micro-batch, [T, V] and [U, X]. Agreement counts the shared ids.

    Source: ULD, arXiv:2402.12030; gold.md section 5 for the rows.
    """

    name = "uld"

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
            ConfigError: `meet` was not called, or the teacher is missing.
            ShapeError: Rows, hidden sizes or ids do not fit.
        """
        key = (
            student_head.width,
            0 if teacher_head is None else teacher_head.width,
            student_hidden.device,
        )
        return ranked_loss(
            self,
            uld,
            self.kept(key, lambda: counterparts(self.pair, *key)),
            None,
            student=(student_hidden, student_head),
            teacher=(teacher_hidden, teacher_head),
            labels=labels,
            num_valid_tokens=num_valid_tokens,
            pairing=pairing,
        )
