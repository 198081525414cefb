"""Cross-entropy with the labels: the part of the loss that needs no teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from kdflow_lab.errors import ShapeError
from kdflow_lab.losses._common import log_probabilities


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """-log q(label) per token, unreduced, at temperature 1.

    It is not one of the divergences, since it needs labels: the loss mixes it in by `kd_ratio`.

    Args:
        student_logits: Float[..., V], any float dtype; computed in float32 (float64 stays).
        labels: Int64[...], ids below V.

    Returns:
        Float32[...] (float64 for float64 logits), in nats; infinite where the label is excluded.

    Raises:
        ShapeError: There is not one label for each row.
    """
    if labels.shape != student_logits.shape[:-1]:
        raise ShapeError(
            f"labels are {tuple(labels.shape)}, student logits {tuple(student_logits.shape)}; "
            "expected one label for each row of logits."
        )
    logp = log_probabilities(student_logits)
    return -torch.gather(logp, -1, labels[..., None])[..., 0]
