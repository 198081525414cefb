"""Distillation between models with the same tokenizer: token by token, position by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import HiddenProjection, LossOutput, chunked_kd_loss, hidden_loss

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head


class VanillaKD:
    """(1 - kd_ratio) * cross-entropy + kd_ratio * divergence from the teacher.

    With `hidden_loss`, hidden_weight times the distance of the last hidden states is added.
    """

    needs_teacher = True
    crosses_tokenizers = False

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`."""
        self.config = config
        self.projection: HiddenProjection | None = None

    def beside(self, student_width: int, teacher_width: int) -> HiddenProjection | None:
        """Make the projection that `hidden_loss` needs where the widths differ."""
        if self.config.hidden_loss != "none" and student_width != teacher_width:
            self.projection = HiddenProjection(student_width, teacher_width, seed=self.config.seed)
        return self.projection

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
        output = chunked_kd_loss(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            labels,
            divergence=config.loss,
            **config.loss_params,
            kd_ratio=config.kd_ratio,
            temperature=config.kd_temperature,
            temperature_squared=config.temperature_squared,
            num_valid_tokens=num_valid_tokens,
            chunk_tokens=config.chunk_tokens,
        )
        if config.hidden_loss == "none" or teacher_hidden is None:
            return output
        rows = student_hidden if self.projection is None else self.projection(student_hidden)
        if rows.shape[1] != teacher_hidden.shape[1]:
            raise ConfigError(
                f"The student's hidden states are {rows.shape[1]} wide, the teacher's "
                f"{teacher_hidden.shape[1]}: hidden_loss={config.hidden_loss!r} needs a projection."
                " Call the algorithm's `beside` first, and train what it returns."
            )
        # copied: backward needs the teacher's rows after their slot of the ring was given back
        distance = hidden_loss(config.hidden_loss, rows, teacher_hidden.clone()).sum()
        loss = output.loss + config.hidden_weight * distance / max(1, num_valid_tokens)
        return output._replace(loss=loss)
