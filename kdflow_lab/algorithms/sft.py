"""Supervised fine-tuning: cross-entropy on the response tokens, without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.losses import chunked_kd_loss

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


class SFT:
    """The control of every distillation: the same loop, data and schedule, hard labels only."""

    needs_teacher = False
    crosses_tokenizers = False

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`."""
        self.config = config

    def loss(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        labels: Tensor,
        *,
        num_valid_tokens: int,
    ) -> LossOutput:
        """Cross-entropy, summed and divided by `num_valid_tokens`; see `Algorithm.loss`."""
        return chunked_kd_loss(
            student_hidden,
            student_head,
            None,
            None,
            labels,
            kd_ratio=0.0,
            num_valid_tokens=num_valid_tokens,
            chunk_tokens=self.config.chunk_tokens,
        )
