"""Universal logit distillation: probabilities by their rank, whatever they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.algorithms._options import met, own_params
from kdflow_lab.algorithms._ranked import ranked_loss
from kdflow_lab.algorithms._shared_ids import counterparts
from kdflow_lab.losses._ranked import uld

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


class ULD:
    """Sum of the differences of both models' sorted probabilities.

    A baseline: it teaches how sure to be, not of what. Rows are those where both sides begin a span
    of text that both delimit (`align="spans"`), or the n-th tokens of both answers as in the paper
    (`align="position"`). `skip_eos` leaves the end of the answer out. `variant="trl"` computes it
    as TRL 1.16 does (see `losses/_trl.py`), but divides by all response tokens; it holds the
    logits of the micro-batch, [T, V] and [U, X]. Agreement counts the shared ids.

    Source: ULD, arXiv:2402.12030; gold.md section 5 for the rows.
    """

    needs_teacher = True
    crosses_tokenizers = True

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`.

        Raises:
            ConfigError: An option means nothing here.
        """
        self.config = config
        self.params = own_params("uld", config)
        self._pair: TokenizerPair | None = None
        self._counterparts: dict[tuple[int, int, torch.device], Tensor] = {}

    def meet(
        self,
        pair: TokenizerPair,
        student_head_rows: int | None = None,
        teacher_head_rows: int | None = None,
    ) -> None:
        """Take both vocabularies."""
        self._pair = pair
        self._counterparts.clear()

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
        pair = met("uld", self._pair)
        return ranked_loss(
            "uld",
            self.config,
            self.params,
            pair,
            uld,
            self._counterpart(pair, student_head, teacher_head, student_hidden.device),
            None,
            student=(student_hidden, student_head),
            teacher=(teacher_hidden, teacher_head),
            labels=labels,
            num_valid_tokens=num_valid_tokens,
            pairing=pairing,
        )

    def _counterpart(
        self, pair: TokenizerPair, student: Head, teacher: Head | None, device: torch.device
    ) -> Tensor:
        """Int64[X]: the student's id of each of the teacher's, -1 for none."""
        key = student.width, 0 if teacher is None else teacher.width, device
        if key not in self._counterparts:
            self._counterparts[key] = counterparts(pair, *key)
        return self._counterparts[key]
