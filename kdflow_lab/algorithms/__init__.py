"""Algorithms: how a micro-batch and both models' hidden states become a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.config import DistillConfig

NAMES: tuple[str, ...] = ("sft", "vanilla_kd")


def check_name(name: str) -> None:
    """Refuse an algorithm that does not exist.

    Raises:
        ConfigError: Unknown name; the nearest one is offered.
    """
    if name not in NAMES:
        raise unknown_name("algorithm", name, NAMES)


def make_algorithm(config: DistillConfig) -> Algorithm:
    """Build the algorithm that `config.algorithm` names."""
    check_name(config.algorithm)
    if config.algorithm == "sft":
        from kdflow_lab.algorithms.sft import SFT

        return SFT(config)
    from kdflow_lab.algorithms.vanilla_kd import VanillaKD

    return VanillaKD(config)
