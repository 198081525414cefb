"""Algorithms: how a micro-batch and both models' hidden states become a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdflow_lab.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.config import DistillConfig

NAMES: tuple[str, ...] = ("sft", "vanilla_kd")
"""Algorithms that come with the package; `names()` also lists the registered ones."""

_REGISTERED: dict[str, type] = {}


def names() -> tuple[str, ...]:
    """Every algorithm that `DistillConfig.algorithm` may name now, registered ones last."""
    return (*NAMES, *_REGISTERED)


def registered() -> dict[str, type]:
    """Return the registered classes by name."""
    return dict(_REGISTERED)


def register(name: str, kind: type) -> None:
    """Make a class an algorithm in this process; one of the same name is replaced.

    Raises:
        ConfigError: The name is no identifier, or is taken by the package.
    """
    if not name.isidentifier() or name in NAMES:
        raise ConfigError(
            f"{name!r} cannot name an algorithm: use letters, digits and '_', and none of "
            f"{', '.join(NAMES)}."
        )
    _REGISTERED[name] = kind


def unregister(name: str) -> None:
    """Take a registered algorithm away again; one that is not registered is no error."""
    _REGISTERED.pop(name, None)


def check_name(name: str) -> None:
    """Refuse an algorithm that does not exist.

    Raises:
        ConfigError: Unknown name; the nearest one is offered.
    """
    if name not in names():
        raise unknown_name("algorithm", name, names())


def make_algorithm(config: DistillConfig) -> Algorithm:
    """Build the algorithm that `config.algorithm` names."""
    check_name(config.algorithm)
    if config.algorithm in _REGISTERED:
        return _REGISTERED[config.algorithm](config)
    if config.algorithm == "sft":
        from kdflow_lab.algorithms.sft import SFT

        return SFT(config)
    from kdflow_lab.algorithms.vanilla_kd import VanillaKD

    return VanillaKD(config)
