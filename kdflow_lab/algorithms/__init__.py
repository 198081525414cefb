"""Algorithms: how a micro-batch and both models' hidden states become a loss."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdflow_lab.algorithms.names import ENTRIES, check_algorithm_params
from kdflow_lab.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.config import DistillConfig

NAMES: tuple[str, ...] = tuple(ENTRIES)
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
    if not name.isidentifier() or name in (*NAMES, "auto"):
        raise ConfigError(
            f"{name!r} cannot name an algorithm: use letters, digits and '_', and none of "
            f"{', '.join((*NAMES, 'auto'))}."
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


def check_params(name: str, params: Mapping[str, Any]) -> None:
    """Refuse parameters that an algorithm does not take; a registered one checks its own.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    check_name(name)
    if name not in _REGISTERED:
        check_algorithm_params(name, params)


def crosses_tokenizers(name: str) -> bool:
    """Tell whether teacher and student of an algorithm may have different tokenizers.

    Raises:
        ConfigError: Unknown name; the nearest one is offered.
    """
    check_name(name)
    if name in _REGISTERED:
        return bool(getattr(_REGISTERED[name], "crosses_tokenizers", False))
    return ENTRIES[name].crosses_tokenizers


def make_algorithm(config: DistillConfig) -> Algorithm:
    """Build the algorithm that `config.algorithm` names.

    Raises:
        ConfigError: There is no such algorithm, it does not take one of its parameters, or it is
            `auto`, which only both tokenizers can tell.
    """
    if config.algorithm == "auto":
        raise ConfigError(
            "algorithm='auto' is decided by the two tokenizers, which are not known here. Name one "
            "of " + ", ".join(names()) + "."
        )
    check_name(config.algorithm)
    if config.algorithm in _REGISTERED:
        return _REGISTERED[config.algorithm](config)
    check_algorithm_params(config.algorithm, config.algorithm_params)
    module, _, kind = ENTRIES[config.algorithm].kind.partition(":")
    return getattr(importlib.import_module(f"kdflow_lab.algorithms.{module}"), kind)(config)
