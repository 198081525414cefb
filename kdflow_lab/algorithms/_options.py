"""What an algorithm between two tokenizers checks of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdflow_lab.algorithms.names import ENTRIES, check_algorithm_params
from kdflow_lab.errors import ConfigError

if TYPE_CHECKING:
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.config import DistillConfig


def own_params(name: str, config: DistillConfig) -> dict[str, Any]:
    """The algorithm's parameters with their defaults; refuses options that mean nothing to it.

    Raises:
        ConfigError: A parameter is unknown or out of range, or an option has no meaning here.
    """
    if config.hidden_loss != "none":
        raise ConfigError(
            f"hidden_loss={config.hidden_loss!r} compares hidden states row by row, and the two "
            f"tokenizers of {name!r} give different rows. Use hidden_loss='none'."
        )
    check_options(name, config)
    return check_algorithm_params(name, config.algorithm_params)


def check_options(name: str, config: DistillConfig) -> None:
    """Refuse a divergence or a temperature that the algorithm would ignore.

    Raises:
        ConfigError: See above.
    """
    entry = ENTRIES[name]
    if not entry.takes_loss and config.loss != "forward_kl":
        raise ConfigError(
            f"The algorithm {name!r} has a loss of its own and cannot use loss={config.loss!r}. "
            "Leave the option out, or use algorithm='byte_prefix', which takes any divergence."
        )
    if not entry.takes_temperature and config.kd_temperature != 1.0:
        raise ConfigError(
            f"The algorithm {name!r} has no use for kd_temperature={config.kd_temperature:g}. "
            "Leave it at 1; algorithm_params may hold one of its own."
        )


def sizes(pairing: Pairing) -> tuple[int, int]:
    """Tokens of the student and of the teacher."""
    return len(pairing.student_start), len(pairing.teacher_start)
