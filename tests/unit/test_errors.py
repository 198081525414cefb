"""Errors survive the way from an engine to a notebook, and offer the nearest right name."""

from __future__ import annotations

import inspect
import pickle

import pytest

from kdflow_lab import errors
from kdflow_lab.errors import ConfigError, KDFlowLabError, nearest, unknown_name

BUILTIN = {
    "ConfigError": ValueError,
    "DataError": ValueError,
    "ModelError": ValueError,
    "ShapeError": ValueError,
    "ClusterError": RuntimeError,
    "TransportError": RuntimeError,
    "CacheError": RuntimeError,
    "MetricError": ValueError,
    "RunError": RuntimeError,
}
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, KDFlowLabError) and kind is not KDFlowLabError
]


def test_every_error_is_listed_here() -> None:
    assert {kind.__name__ for kind in CLASSES} == set(BUILTIN)


@pytest.mark.parametrize("kind", CLASSES)
def test_error_is_caught_as_its_builtin(kind: type[KDFlowLabError]) -> None:
    assert issubclass(kind, BUILTIN[kind.__name__])


@pytest.mark.parametrize("kind", CLASSES)
def test_error_survives_pickling(kind: type[KDFlowLabError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what was wrong; what to do")))
    assert type(back) is kind
    assert str(back) == "what was wrong; what to do"


def test_nearest_offers_one_name_or_none() -> None:
    assert nearest("revers_kl", ["forward_kl", "reverse_kl"]) == " Did you mean 'reverse_kl'?"
    assert nearest("zzz", ["forward_kl", "reverse_kl"]) == ""
    assert nearest("x", []) == ""


def test_unknown_name_says_what_was_given_the_nearest_and_all() -> None:
    error = unknown_name("divergence", "forwrd_kl", iter(["reverse_kl", "forward_kl"]))
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "Unknown divergence 'forwrd_kl'. Did you mean 'forward_kl'? Known: forward_kl, reverse_kl."
    )
