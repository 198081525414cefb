"""Names of the divergences, for completion and checks; imports no torch."""

from __future__ import annotations

from kdflow_lab.config import LOSS_ALIASES
from kdflow_lab.errors import unknown_name

NAMES: tuple[str, ...] = ("forward_kl", "reverse_kl")
"""Divergences that `kd.losses.divergence` and `DistillConfig.loss` know."""


def full_name(name: str) -> str:
    """Resolve KDFlow's short names (`kl`, `rkl`, …).

    Raises:
        ConfigError: There is no such divergence; the nearest name is offered.
    """
    full = LOSS_ALIASES.get(name, name)
    if full not in NAMES:
        raise unknown_name("divergence", name, NAMES)
    return full
