"""Which weights a LoRA student stands on: its checkpoints hold adapters, of use with no others.

The mark is a hash of names, shapes and some elements of every parameter, so that it costs nothing
beside loading. Training changes nearly all elements; a single edited row may go unseen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from kdflow_lab.errors import RunError

ELEMENTS = 1024
"""Looked at in each parameter, evenly spaced."""


def mark_of(model: Any) -> str:
    """Hash a plain model, before it is adapted or sharded.

    Args:
        model: Its parameters are whole, on the CPU.

    Returns:
        32 hexadecimal digits, the same for the same weights in the same dtype.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // ELEMENTS)].contiguous()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_mark(saved: str | None, mark: str | None, checkpoint: Path) -> None:
    """Refuse adapters that were trained on other weights.

    Args:
        saved: The mark in the checkpoint; None where all weights are in it.
        mark: Of the model that the adapters are to be put on.
        checkpoint: For the error.

    Raises:
        RunError: They are not the same.
    """
    if saved is not None and mark is not None and saved != mark:
        raise RunError(
            f"The adapters in {checkpoint} were trained on other weights than those of the model "
            "that the run's config names: its folder has changed since. Put the old weights back; "
            "adapters alone are of no use with others."
        )
