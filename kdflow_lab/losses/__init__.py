"""Losses: divergences per token, and the chunked loss that never holds the logits.

This module imports no torch until one of its functions is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdflow_lab.losses.names import NAMES, full_name

if TYPE_CHECKING:
    from kdflow_lab.losses._chunked import LossOutput, PerToken, chunked_kd_loss, per_token
    from kdflow_lab.losses._divergences import divergence
    from kdflow_lab.losses.head import Head

__all__ = [
    "NAMES",
    "Head",
    "LossOutput",
    "PerToken",
    "chunked_kd_loss",
    "divergence",
    "full_name",
    "per_token",
]

_WHERE = {
    "Head": "kdflow_lab.losses.head",
    "LossOutput": "kdflow_lab.losses._chunked",
    "PerToken": "kdflow_lab.losses._chunked",
    "chunked_kd_loss": "kdflow_lab.losses._chunked",
    "per_token": "kdflow_lab.losses._chunked",
    "divergence": "kdflow_lab.losses._divergences",
}


def __getattr__(name: str) -> Any:
    """Load a function's module at its first use."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
