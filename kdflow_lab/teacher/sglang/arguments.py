"""What SGLang is told: a lab's options as arguments of its `ServerArgs`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kdflow_lab.errors import ConfigError, nearest

CPU_POOL_TOKENS = 32768
"""Tokens in SGLang's key-value cache on a CPU. Without a radix cache it holds only what runs."""
FIXED = ("model_path", "forward_hooks", "disable_radix_cache", "skip_tokenizer_init", "device")
"""Arguments that this backend depends on."""
OPTIONS = {
    "tp_size": "tp_size",
    "pp_size": "pp_size",
    "ep_size": "ep_size",
    "dp_size": "dp_size",
    "mem_fraction": "mem_fraction_static",
    "quantization": "quantization",
    "context_length": "context_length",
}
"""Options of a lab, and SGLang's names for them."""


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """The options of `LabConfig` that only this backend has; None leaves it to SGLang."""

    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    dp_size: int = 1
    mem_fraction: float | None = None
    quantization: str | None = None
    context_length: int | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    colocated: bool = False
    """The students use GPUs of the teacher: it must be able to give its memory away."""

    @property
    def asked(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        default = SglangOptions()
        return [
            name
            for name in self.__slots__
            if name != "colocated" and getattr(self, name) != getattr(default, name)
        ]


def server_arguments(
    path: str,
    options: SglangOptions,
    *,
    dtype: str,
    device: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Build the keyword arguments of SGLang's `Engine`, its hook left out.

    Args:
        path: Folder of the model.
        options: What the user asked for.
        dtype: Name of the rows' dtype.
        device: `cpu` or `cuda`.
        trust_remote_code: As in `LabConfig`.

    Raises:
        ConfigError: `engine_args` names what is an option, or what this backend depends on.
    """
    arguments: dict[str, Any] = {
        "model_path": path,
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "skip_tokenizer_init": True,  # token ids in, no text out
        "skip_server_warmup": True,
        "disable_radix_cache": True,  # a row that is found in a cache would not be computed
        "sleep_on_idle": True,  # else a scheduler without work keeps a core busy
        "grammar_backend": "none",
        "log_level": "error",
    }
    if device == "cpu":
        arguments |= {
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "disable_cuda_graph": True,
            "disable_overlap_schedule": True,
            "mem_fraction_static": 0.3,  # SGLang's own estimate is for GPUs, and fails
            "max_total_tokens": CPU_POOL_TOKENS,
        }
    else:
        # A hook does not run when a captured graph is replayed. Nothing is decoded either.
        arguments |= {"disable_cuda_graph": True}
        if options.colocated and importlib.util.find_spec("torch_memory_saver"):
            # The backup keeps the weights in host memory while the teacher sleeps.
            arguments |= {"enable_memory_saver": True, "enable_weights_cpu_backup": True}
    for name, theirs in OPTIONS.items():
        value = getattr(options, name)
        if value not in (None, 1):
            arguments[theirs] = value
    if options.mem_fraction is not None:
        arguments.pop("max_total_tokens", None)  # the user's share decides, not ours
    for name in options.engine_args:
        ours = next((one for one, theirs in OPTIONS.items() if theirs == name), None)
        if ours is not None:
            raise ConfigError(f"engine_args: {name!r} is the lab's own option {ours!r}. Use that.")
        if name in FIXED:
            raise ConfigError(
                f"engine_args: {name!r} cannot be changed: the teacher's rows depend on it. "
                f"It is {arguments.get(name, 'set by kdflow-lab')!r}."
            )
    return arguments | options.engine_args


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an argument that this SGLang does not have.

    Args:
        names: What is to be passed.
        known: Fields of its `ServerArgs`.

    Raises:
        ConfigError: With the nearest name that exists.
    """
    fields = set(known)
    for name in names:
        if name not in fields:
            raise ConfigError(
                f"engine_args: SGLang has no argument {name!r}.{nearest(name, sorted(fields))} "
                "Its ServerArgs lists them."
            )
