"""What an algorithm does where no teacher was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.losses import chunked_kd_loss

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head, LossOutput


def without_teacher(
    config: DistillConfig,
    student_hidden: Tensor,
    student_head: Head,
    labels: Tensor,
    num_valid_tokens: int,
) -> LossOutput:
    """Cross-entropy alone, which is right with kd_ratio = 0.

    Raises:
        ConfigError: kd_ratio is above 0.
    """
    return chunked_kd_loss(
        student_hidden,
        student_head,
        None,
        None,
        labels,
        kd_ratio=config.kd_ratio,
        num_valid_tokens=num_valid_tokens,
        chunk_tokens=config.chunk_tokens,
    )
