"""Errors of kdflow-lab: what was wrong, what was expected, what to do.

Every error a user can meet derives from `KDFlowLabError`. A subclass also inherits the built-in
error that its kind of mistake usually raises, so that plain `except ValueError` keeps working.
All of them take one message and stay picklable: engines raise them and notebooks read them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class KDFlowLabError(Exception):
    """Root of all errors that kdflow-lab raises on purpose."""


class ConfigError(KDFlowLabError, ValueError):
    """An option, a name or a value that cannot be used."""


class DataError(KDFlowLabError, ValueError):
    """A dataset, a file or a row that cannot be used."""


class MetricError(DataError):
    """A metric of answers that failed on one.

    Attributes:
        evaluation: What was computed without it (an `Evaluation` or `EvaluationTable`), or None.
    """

    evaluation: Any = None


class ModelError(KDFlowLabError, ValueError):
    """A model folder, a head or a tokenizer that cannot be used."""


class ShapeError(KDFlowLabError, ValueError):
    """Tensors whose shapes do not fit each other."""


class ClusterError(KDFlowLabError, RuntimeError):
    """Engines that did not start, died or cannot be reached."""


class TransportError(KDFlowLabError, RuntimeError):
    """The hidden-state ring: a slot too small, a peer gone, a message out of order."""


class CacheError(KDFlowLabError, RuntimeError):
    """Hidden states on disk that are torn, of another teacher, or cannot be written."""


class RunError(KDFlowLabError, RuntimeError):
    """A run that failed, or that cannot do what it was asked in its present state."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(what: str, got: str, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not one of `known`, offering the nearest one.

    Args:
        what: What the name stands for, such as "divergence" or "command".
        got: The name that was given.
        known: The names that exist.
    """
    names = sorted(known)
    listed = ", ".join(names)
    return ConfigError(f"Unknown {what} {got!r}.{nearest(got, names)} Known: {listed}.")
