"""Names and parameters of the algorithms, checked without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from kdflow_lab import algorithms
from kdflow_lab.algorithms.names import ENTRIES, check_algorithm_params
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError


@pytest.mark.parametrize("name", ENTRIES)
def test_every_name_builds_and_says_what_it_is(name: str) -> None:
    config = DistillConfig(algorithm=name, on_policy=ENTRIES[name].on_policy)
    one: Any = algorithms.make_algorithm(config)
    assert one.needs_teacher is (name != "sft")
    assert one.crosses_tokenizers is ENTRIES[name].crosses_tokenizers
    assert algorithms.crosses_tokenizers(name) is ENTRIES[name].crosses_tokenizers
    assert ENTRIES[name].about


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("byte_prefx", {}, "Did you mean 'byte_prefix'"),
        ("byte_prefix", {"row": "all"}, "Did you mean 'rows'"),
        ("byte_prefix", {"rows": "exakt"}, "Did you mean 'exact'"),
        ("byte_prefix", {"rows": 3}, "one of 'one_to_one', 'exact', 'all'"),
        ("byte_prefix", {"mask_whitespace": 1}, "true or false"),
        ("dskd", {"topk_vocab": 2.5}, "a whole number"),
        ("dskd", {"topk_vocab": -2}, "at least -1"),
        ("dskd", {"projector_lr": 0.0}, "not the ends themselves"),
        ("gold", {"beta": 1.5}, "from 0 to 1"),
        ("alm", {"tau": float("nan")}, "tau is nan"),
        ("vanilla_kd", {"rows": "all"}, "It takes none"),
    ],
)
def test_what_does_not_fit_is_named(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithms.check_params(name, params)


def test_defaults_are_filled_in() -> None:
    found = check_algorithm_params("dskd", {"topk_vocab": 3.0})
    assert found == {"token_align": "eta", "topk_vocab": 3, "projector_lr": 1e-4}
    assert isinstance(found["topk_vocab"], int)
    assert check_algorithm_params("byte_prefix", {})["rows"] == "exact"


def test_auto_is_no_algorithm() -> None:
    with pytest.raises(ConfigError, match="decided by the two tokenizers"):
        algorithms.make_algorithm(DistillConfig())
    with pytest.raises(ConfigError, match="cannot name"):
        algorithms.register("auto", object)


def test_dskd_wants_some_ids() -> None:
    with pytest.raises(ConfigError, match="topk_vocab is 0"):
        algorithms.make_algorithm(
            DistillConfig(algorithm="dskd", algorithm_params={"topk_vocab": 0})
        )


def test_likelihoods_have_no_temperature() -> None:
    with pytest.raises(ConfigError, match="kd_temperature=2"):
        algorithms.make_algorithm(DistillConfig(algorithm="alm", kd_temperature=2.0))


def test_the_table_loads_no_torch() -> None:
    program = "import sys, kdflow_lab.algorithms as a; a.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
