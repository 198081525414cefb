"""Names and parameters of the divergences, for completion and checks; imports no torch.

The one table of what there is. A built-in divergence is named by the place of its function, so that
a notebook can check options without loading torch; `register_divergence` adds a function itself.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdflow_lab.config import LOSS_ALIASES
from kdflow_lab.errors import ConfigError, nearest, unknown_name

Function = Callable[..., Any]
"""`function(student_logits, teacher_logits, **params)`: two Float[T, V], float32 or float64 and
already divided by the temperature, to Float[T] in nats. No gradient flows to the teacher."""


@dataclass(frozen=True, slots=True)
class Param:
    """A number that a divergence takes.

    Attributes:
        default: Where none is given.
        least: Smallest value.
        most: Largest value.
        open: `least` and `most` themselves are out of range.
        whole: A whole number.
        free: Any value goes: the parameter of a registered function, which checks it itself.
    """

    default: Any
    least: float = -math.inf
    most: float = math.inf
    open: bool = False
    whole: bool = False
    free: bool = False

    def range(self) -> str:
        """Say in words what fits."""
        if self.whole:
            return f"a whole number, at least {self.least:g}"
        ends = " (not the ends themselves)" if self.open else ""
        return f"a number from {self.least:g} to {self.most:g}{ends}"

    def fits(self, value: Any) -> bool:
        """Tell whether a value is in range; NaN is not."""
        if self.free:
            return True
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and value != int(value if math.isfinite(value) else 0):
            return False
        inside = self.least < value < self.most if self.open else self.least <= value <= self.most
        return inside and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Entry:
    """A divergence: where its function is, or the function, and what it takes."""

    function: str | Function
    params: Mapping[str, Param] = field(default_factory=dict)

    def load(self) -> Function:
        """Return the function, importing its module if need be."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"kdflow_lab.losses.{module}"), name)


_SHARE = Param(0.1, 0.0, 1.0, open=True)

BUILT_IN: dict[str, Entry] = {
    "forward_kl": Entry("_kl:forward_kl"),
    "reverse_kl": Entry("_kl:reverse_kl"),
    "jsd": Entry("_mixture:jsd", {"beta": Param(0.5, 0.0, 1.0)}),
    "skewed_forward_kl": Entry("_mixture:skewed_forward_kl", {"skew": _SHARE}),
    "skewed_reverse_kl": Entry("_mixture:skewed_reverse_kl", {"skew": _SHARE}),
    "adaptive_kl": Entry("_adaptive:adaptive_kl", {"alpha": Param(0.5, 0.0, 1.0)}),
    "alpha_divergence": Entry("_alpha:alpha_divergence", {"alpha": Param(0.5, 0.0, 1.0)}),
    "tvd": Entry("_alpha:tvd"),
    "hrl": Entry("_ranking:hrl", {"k": Param(5, 1, whole=True)}),
    "top1_ce": Entry("_ranking:top1_ce"),
    "topk_forward_kl": Entry("_topk:topk_forward_kl", {"k": Param(50, 1, whole=True)}),
    "topk_reverse_kl": Entry("_topk:topk_reverse_kl", {"k": Param(50, 1, whole=True)}),
}
NAMES: tuple[str, ...] = tuple(BUILT_IN)
"""Divergences that come with the package; `names()` also lists the registered ones."""

_REGISTERED: dict[str, Entry] = {}

_NOT_DIVERGENCES = {
    "cross_entropy": "it compares the student with the labels, not with the teacher. Use "
    "kd_ratio=0 or algorithm='sft', or kd.losses.cross_entropy on logits",
    "mse": "it compares hidden states, not logits. Use the option hidden_loss='mse'",
    "cosine": "it compares hidden states, not logits. Use the option hidden_loss='cosine'",
}


def names() -> tuple[str, ...]:
    """Every divergence that `DistillConfig.loss` may name now, registered ones last."""
    return (*NAMES, *_REGISTERED)


def full_name(name: str) -> str:
    """Resolve KDFlow's short names (`kl`, `rkl`, …).

    Raises:
        ConfigError: There is no such divergence; the nearest name is offered.
    """
    full = LOSS_ALIASES.get(name, name)
    if full in _NOT_DIVERGENCES:
        raise ConfigError(f"{full!r} is not a divergence: {_NOT_DIVERGENCES[full]}.")
    if full not in BUILT_IN and full not in _REGISTERED:
        raise unknown_name("divergence", name, names())
    return full


def entry(name: str) -> Entry:
    """Return the entry of a divergence.

    Raises:
        ConfigError: There is no such divergence; the nearest name is offered.
    """
    full = full_name(name)
    return BUILT_IN.get(full) or _REGISTERED[full]


def check_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check a divergence's parameters and return them; whole numbers come back as `int`.

    Args:
        name: Of the divergence; a short one works too.
        params: Those that were given; the others keep their defaults.

    Raises:
        ConfigError: The divergence, or one of its parameters, is unknown (the nearest name is
            offered), or a value is out of range.
    """
    full, known = full_name(name), entry(name).params
    checked: dict[str, Any] = {}
    for key, value in params.items():
        if key not in known:
            takes = f"It takes {', '.join(known)}" if known else "It takes none"
            hint = nearest(str(key), known)
            raise ConfigError(f"The divergence {full!r} has no parameter {key!r}.{hint} {takes}.")
        if not known[key].fits(value):
            raise ConfigError(f"{full}: {key} is {value!r}; expected {known[key].range()}.")
        checked[key] = int(value) if known[key].whole else value
    return checked


def register_divergence(name: str) -> Callable[[Function], Function]:
    """Make a function a divergence that `DistillConfig.loss` may name (a decorator).

    The function gets two Float[T, V], the student's and the teacher's logits, already divided by
    the temperature, and returns Float[T], differentiable in the student's. Keyword parameters with
    a default become `loss_params`. A name that was registered before is replaced: cells are run
    again. The registration holds in this process.

    Raises:
        ConfigError: The name is no identifier or is taken by a built-in one, or the function takes
            anything but two tensors and parameters with defaults.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"{name!r} cannot name a divergence: use letters, digits and '_'.")
    if name in BUILT_IN or name in LOSS_ALIASES or name in _NOT_DIVERGENCES:
        raise ConfigError(f"{name!r} is a loss of the package. Give yours another name.")

    def register(function: Function) -> Function:
        _REGISTERED[name] = Entry(function, _params_of(name, function))
        return function

    return register


def registered() -> dict[str, Function]:
    """Return the registered functions by name."""
    return {name: one.load() for name, one in _REGISTERED.items()}


def unregister_divergence(name: str) -> None:
    """Take a registered divergence away again; one that is not registered is no error."""
    _REGISTERED.pop(name, None)


def _params_of(name: str, function: Function) -> dict[str, Param]:
    """Read the parameters of a registered function from its signature."""
    if not callable(function):
        raise ConfigError(f"The divergence {name!r} is no function.")
    signature = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first, rest = signature[:2], signature[2:]
    right = len(first) == 2 and all(p.kind in positional for p in first)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not right or any(p.default is p.empty or p.kind not in named for p in rest):
        raise ConfigError(
            f"The divergence {name!r} takes {inspect.signature(function)}; expected "
            "(student_logits, teacher_logits) and then parameters with defaults."
        )
    return {p.name: Param(p.default, free=True) for p in rest}
