"""Distillation between models with the same tokenizer: token by token, position by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.losses import chunked_kd_loss

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


class VanillaKD:
    """(1 - kd_ratio) * cross-entropy + kd_ratio * divergence from the teacher."""

    needs_teacher = True

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
        """See `Algorithm.loss` and `chunked_kd_loss`."""
        config = self.config
        return chunked_kd_loss(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            labels,
            divergence=config.loss,
            kd_ratio=config.kd_ratio,
            temperature=config.kd_temperature,
            temperature_squared=config.temperature_squared,
            num_valid_tokens=num_valid_tokens,
            chunk_tokens=config.chunk_tokens,
        )
