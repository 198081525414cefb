"""Divergences, algorithms and metrics of a notebook's own, and their way to the engines.

A cell registers a function or a class; it is tried on a tiny input at once, so that a mistake is
that cell's error and not the engines', two hundred steps later. A run carries what was registered
in its directory, `registered.json`: the source for people, and the pickled object (cloudpickle, by
value) for the engines. Loading it runs that code, so it happens only where a run is started,
resumed or forked by its user, never where one is only looked at.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab import algorithms, answer_metrics
from kdflow_lab.errors import ConfigError, KDFlowLabError, RunError
from kdflow_lab.losses.names import (
    Function,
    registered,
    unregister_divergence,
)
from kdflow_lab.losses.names import register_divergence as _register_divergence

if TYPE_CHECKING:
    from kdflow_lab.rundir import RunDirectory

FILE = "registered.json"
Registered = dict[str, dict[str, dict[str, str]]]
"""By kind (`divergences`, `algorithms`, `metrics`) and name: `pickle` (base64) and `source`."""


def register_divergence(name: str) -> Callable[[Function], Function]:
    """Make a function a divergence that runs, `Run.set` and the sandbox can name (a decorator).

    The function gets the student's and the teacher's logits, two Float[T, V] (float32 or float64,
    divided by the temperature already), and returns Float[T], nats, differentiable in the
    student's. Keyword parameters with a default become `loss_params`.

    Example:
        >>> @kd.register_divergence("mine")  # doctest: +SKIP
        ... def mine(student_logits, teacher_logits, power=2.0):
        ...     q, p = student_logits.softmax(-1), teacher_logits.softmax(-1)
        ...     return (q - p).abs().pow(power).sum(-1)

    Raises:
        ConfigError: The name is taken or no identifier, the function takes something else, or on a
            tiny input it raises, or returns a wrong shape, a value or gradient that is not finite,
            or no gradient.
    """

    def register(function: Function) -> Function:
        before = registered().get(name)
        _register_divergence(name)(function)
        try:
            _try_divergence(name)
        except ConfigError:
            unregister_divergence(name)
            if before is not None:
                _register_divergence(name)(before)
            raise
        return function

    return register


def register_algorithm(name: str) -> Callable[[type], type]:
    """Make a class an algorithm that `DistillConfig.algorithm` can name (a decorator).

    The class is built as `Class(config)`, has `needs_teacher`, and turns a micro-batch's hidden
    states into a `LossOutput`: see `kdflow_lab.algorithms.base.Algorithm`.

    Raises:
        ConfigError: The name is taken or no identifier, or the class fails on a tiny input.
    """

    def register(kind: type) -> type:
        algorithms.register(name, kind)
        try:
            _try_algorithm(name)
        except ConfigError:
            algorithms.unregister(name)
            raise
        return kind

    return register


def register_metric(name: str) -> Callable[[answer_metrics.Metric], answer_metrics.Metric]:
    """Make a function a metric that `Lab.evaluate` and a run's `eval_metrics` can name.

    A decorator. The function gets a model's answer, a text, and the row of data that asked for it,
    a dict, and returns a finite number (larger is better), True or False. It is not tried here:
    which columns rows have, only the data knows.

    Example:
        >>> @kd.register_metric("short")  # doctest: +SKIP
        ... def short(answer, row):
        ...     return len(answer) <= 2 * len(row["answers"][0])

    Raises:
        ConfigError: The name is no identifier or means something else, or the function cannot take
            an answer and a row.
    """

    def register(function: answer_metrics.Metric) -> answer_metrics.Metric:
        answer_metrics.register(name, function)
        return function

    return register


# -- to the engines -------------------------------------------------------------------------------


def dump() -> Registered:
    """Pack everything that is registered in this process."""
    found: Registered = {}
    for kind, known in (
        ("divergences", registered()),
        ("algorithms", algorithms.registered()),
        ("metrics", answer_metrics.registered()),
    ):
        packed = {name: _pack(thing) for name, thing in known.items()}
        if packed:
            found[kind] = packed
    return found


def install(found: Registered) -> None:
    """Register what `dump` packed, in this process; it was tried where it was registered.

    Raises:
        RunError: It cannot be unpacked here, such as for want of a module.
    """
    import cloudpickle

    for kind, known in found.items():
        for name, packed in known.items():
            try:
                thing = cloudpickle.loads(base64.b64decode(packed["pickle"]))
            except Exception as error:
                raise RunError(
                    f"The registered {kind[:-1]} {name!r} cannot be loaded in this process: "
                    f"{type(error).__name__}: {error}. Modules that it imports must be installed "
                    "where the engines run."
                ) from error
            if kind == "divergences":
                _register_divergence(name)(thing)
            elif kind == "metrics":
                answer_metrics.register(name, thing)
            else:
                algorithms.register(name, thing)


def ship(directory: RunDirectory) -> None:
    """Write what is registered here into a run directory, if anything is."""
    found = dump()
    if found:
        text = json.dumps(found, indent=1)
        (directory.path / FILE).write_text(text, encoding="utf-8")


def load(directory: RunDirectory) -> None:
    """Register what a run directory carries. This runs code that came with the run.

    Raises:
        RunError: It cannot be read or unpacked.
    """
    file = directory.path / FILE
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}.") from None
    install(found)


def _pack(thing: Any) -> dict[str, str]:
    import cloudpickle

    with _by_value(thing):
        pickled = cloudpickle.dumps(thing)
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        source = ""
    return {"pickle": base64.b64encode(pickled).decode(), "source": source}


@contextlib.contextmanager
def _by_value(thing: Any) -> Iterator[None]:
    """Pickle a module of the user's own by value: engines may not find it, or find an old one."""
    import cloudpickle

    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    installed = file is None or "site-packages" in file or thing.__module__.startswith("kdflow_lab")
    if module is None or installed or Path(file or "").is_relative_to(sys.base_prefix):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# -- trying ---------------------------------------------------------------------------------------

TOKENS, VOCABULARY, WIDTH = 5, 11, 4


def _try_divergence(name: str) -> None:
    """Run a divergence on random and on equal logits of a tiny vocabulary."""
    import torch

    from kdflow_lab.losses import divergence

    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, TOKENS, VOCABULARY, generator=generator)
    for what, teacher in (("random logits", made[1]), ("equal logits", made[0])):
        student = made[0].clone().requires_grad_(True)
        value = _called(f"The divergence {name!r}", what, divergence, name, student, teacher)
        _check_value(f"The divergence {name!r}", what, value)
        _check_gradient(f"The divergence {name!r}", what, value.sum(), student)


def _try_algorithm(name: str) -> None:
    """Build an algorithm and run its loss on tiny hidden states."""
    import torch

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.losses import Head

    who = f"The algorithm {name!r}"
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    algorithm = _called(
        who, "the default options", algorithms.make_algorithm, DistillConfig(algorithm=name)
    )
    if not isinstance(getattr(algorithm, "needs_teacher", None), bool):
        raise ConfigError(f"{who} has no needs_teacher; expected True or False.")
    hidden = made(TOKENS, WIDTH).requires_grad_(True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    teacher = (made(TOKENS, 2 * WIDTH), Head(made(VOCABULARY, 2 * WIDTH)))
    paired: dict[str, Any] = {}
    if getattr(algorithm, "crosses_tokenizers", False):
        pair, paired["pairing"] = _tiny_pairing(labels.numpy())
        _called(who, "two tiny vocabularies", algorithm.meet, pair, VOCABULARY, VOCABULARY)
    output = _called(
        who,
        "tiny hidden states",
        algorithm.loss,
        hidden,
        Head(made(VOCABULARY, WIDTH)),
        *(teacher if algorithm.needs_teacher else (None, None)),
        labels,
        num_valid_tokens=TOKENS,
        **paired,
    )
    if not all(hasattr(output, field) for field in ("loss", "ce", "kd", "agreement")):
        raise ConfigError(
            f"{who} returned {type(output).__name__}; expected a kd.losses.LossOutput."
        )
    _check_value(who, "tiny hidden states", output.loss, shape=())
    _check_gradient(who, "tiny hidden states", output.loss, hidden)


def _tiny_pairing(labels: Any) -> tuple[Any, Any]:
    """Two vocabularies of single bytes, and answers of them that lie token on token."""
    import numpy as np

    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary

    letters = tuple(bytes([ord("a") + number]) for number in range(VOCABULARY))
    pair = TokenizerPair(Vocabulary(letters), Vocabulary(letters[::-1]))
    place = np.arange(len(labels), dtype=np.int64)
    one_row = np.zeros_like(place)
    theirs = VOCABULARY - 1 - labels
    return pair, Pairing(place, place + 1, place, place + 1, one_row, one_row, theirs)


def _called(who: str, what: str, function: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """Call what the user wrote; whatever it raises is told in one sentence."""
    try:
        return function(*args, **fields)
    except KDFlowLabError as error:
        raise ConfigError(f"{who} failed on {what}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{who} failed on {what}: {type(error).__name__}: {error}") from error


def _check_value(who: str, what: str, value: Any, *, shape: tuple[int, ...] = (TOKENS,)) -> None:
    got = tuple(value.shape)
    if got != shape:
        raise ConfigError(f"{who} returned {got} on {what}; expected {shape}.")
    if not bool(value.isfinite().all()):
        raise ConfigError(f"{who} returned {value.tolist()} on {what}; expected finite numbers.")


def _check_gradient(who: str, what: str, total: Any, student: Any) -> None:
    import torch

    if not total.requires_grad:
        raise ConfigError(
            f"{who} has no gradient on {what}: it does not depend on the student's side, or was "
            "computed under no_grad or detached."
        )
    (gradient,) = torch.autograd.grad(total, student, allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()):
        raise ConfigError(f"{who} has no finite gradient on {what}.")
