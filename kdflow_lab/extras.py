"""Packages that only some options need: whether they are here, and how to get them."""

from __future__ import annotations

import importlib.util

from kdflow_lab.errors import ConfigError


def need_extra(package: str, extra: str, *, what: str, instead: str) -> None:
    """Refuse an option whose package is missing; imports nothing.

    Args:
        package: As it is imported.
        extra: Of kdflow-lab, that brings it along.
        what: That needs it, as it is spelt.
        instead: What to do without it, as a sentence.

    Raises:
        ConfigError: It is not installed in this Python.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: "
            f"pip install 'kdflow-lab[{extra}]'. {instead}"
        )


def need_peft() -> None:
    """Refuse LoRA where PEFT is missing.

    Raises:
        ConfigError: It is not installed in this Python.
    """
    need_extra("peft", "lora", what="lora_r", instead="Without lora_r all weights are trained.")
