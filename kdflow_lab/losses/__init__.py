"""Losses: divergences per token, and the chunked loss that never holds the logits.

This module imports no torch until one of its functions is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdflow_lab.losses.names import (
    NAMES,
    check_params,
    full_name,
    register_divergence,
    unregister_divergence,
)

if TYPE_CHECKING:
    from kdflow_lab.losses._adaptive import adaptive_kl
    from kdflow_lab.losses._alpha import alpha_divergence, tvd
    from kdflow_lab.losses._chunked import LossOutput, chunked_kd_loss
    from kdflow_lab.losses._divergences import divergence
    from kdflow_lab.losses._hidden import (
        HiddenProjection,
        hidden_cosine,
        hidden_loss,
        hidden_mse,
    )
    from kdflow_lab.losses._kl import forward_kl, reverse_kl
    from kdflow_lab.losses._labels import cross_entropy
    from kdflow_lab.losses._lora import Adapter
    from kdflow_lab.losses._mixture import jsd, skewed_forward_kl, skewed_reverse_kl
    from kdflow_lab.losses._per_token import per_token
    from kdflow_lab.losses._ranking import hrl, top1_ce
    from kdflow_lab.losses._sampled import k1, k2, k3, reverse_kl_surrogate
    from kdflow_lab.losses._statistics import token_statistics
    from kdflow_lab.losses._topk import topk_forward_kl, topk_reverse_kl
    from kdflow_lab.losses._walk import PerToken
    from kdflow_lab.losses.head import Head, head_rows

__all__ = [
    "NAMES",
    "Adapter",
    "Head",
    "HiddenProjection",
    "LossOutput",
    "PerToken",
    "adaptive_kl",
    "alpha_divergence",
    "check_params",
    "chunked_kd_loss",
    "cross_entropy",
    "divergence",
    "forward_kl",
    "full_name",
    "head_rows",
    "hidden_cosine",
    "hidden_loss",
    "hidden_mse",
    "hrl",
    "jsd",
    "k1",
    "k2",
    "k3",
    "per_token",
    "register_divergence",
    "reverse_kl",
    "reverse_kl_surrogate",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "token_statistics",
    "top1_ce",
    "topk_forward_kl",
    "topk_reverse_kl",
    "tvd",
    "unregister_divergence",
]

_WHERE = {
    "Adapter": "_lora",
    "Head": "head",
    "HiddenProjection": "_hidden",
    "LossOutput": "_chunked",
    "PerToken": "_walk",
    "adaptive_kl": "_adaptive",
    "alpha_divergence": "_alpha",
    "chunked_kd_loss": "_chunked",
    "cross_entropy": "_labels",
    "divergence": "_divergences",
    "forward_kl": "_kl",
    "head_rows": "head",
    "hidden_cosine": "_hidden",
    "hidden_loss": "_hidden",
    "hidden_mse": "_hidden",
    "hrl": "_ranking",
    "jsd": "_mixture",
    "k1": "_sampled",
    "k2": "_sampled",
    "k3": "_sampled",
    "per_token": "_per_token",
    "reverse_kl": "_kl",
    "reverse_kl_surrogate": "_sampled",
    "skewed_forward_kl": "_mixture",
    "skewed_reverse_kl": "_mixture",
    "token_statistics": "_statistics",
    "top1_ce": "_ranking",
    "topk_forward_kl": "_topk",
    "topk_reverse_kl": "_topk",
    "tvd": "_alpha",
}


def __getattr__(name: str) -> Any:
    """Load a function's module at its first use."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"kdflow_lab.losses.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
