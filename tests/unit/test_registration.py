"""What a cell registers is tried at once, packed by value, and unpacked in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kdflow_lab as kd
from kdflow_lab import algorithms, answer_metrics, registration
from kdflow_lab.algorithms.vanilla_kd import VanillaKD
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.losses.names import registered, unregister_divergence
from kdflow_lab.rundir import RunDirectory


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Nothing of a test stays registered for the next."""
    yield
    for name in registered():
        unregister_divergence(name)
    for name in algorithms.registered():
        algorithms.unregister(name)
    for name in answer_metrics.registered():
        answer_metrics.unregister(name)


def squared(student_logits: Any, teacher_logits: Any, power: float = 2.0) -> Any:
    """A divergence of a notebook's own."""
    student, teacher = student_logits.softmax(-1), teacher_logits.softmax(-1)
    return (student - teacher).abs().pow(power).sum(-1)


def test_registered_divergence_is_one_like_the_others() -> None:
    assert kd.register_divergence("mine")(squared) is squared
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64)
    value = kd.losses.divergence("mine", student, teacher, temperature=2.0)
    torch.testing.assert_close(value, squared(student / 2, teacher / 2))
    cubed = kd.losses.divergence("mine", student, teacher, power=3.0)
    torch.testing.assert_close(cubed, squared(student, teacher, 3.0))
    assert DistillConfig.parse(loss="mine").loss == "mine"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda s, t: (s.softmax(-1) / 0).sum(-1), "finite numbers"),
        (lambda s, t: s.softmax(-1).sum(), r"expected one value for each token, \(5,\)"),
        (lambda s, t: s.detach().softmax(-1).sum(-1), "has no gradient"),
        (lambda s, t: s.nonsense(), "AttributeError: 'Tensor' object has no attribute 'nonsense'"),
        (lambda s, t: (s - t).abs().sum(-1).sqrt(), "no finite gradient on equal logits"),
        (lambda s: s.sum(-1), "expected .student_logits, teacher_logits."),
        (lambda s, t, power: s.sum(-1), "parameters with defaults"),
    ],
)
def test_mistake_is_said_where_it_is_registered(function: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kd.register_divergence("mine")(function)
    assert "mine" not in registered()


def test_broken_version_leaves_the_one_that_worked() -> None:
    kd.register_divergence("mine")(squared)
    with pytest.raises(ConfigError, match="finite numbers"):
        kd.register_divergence("mine")(lambda s, t: (s.softmax(-1) / 0).sum(-1))
    assert registered()["mine"] is squared


@pytest.mark.parametrize("name", ["forward_kl", "rkl", "mse", "no good", ""])
def test_name_of_the_package_or_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        kd.register_divergence(name)(squared)


def test_registered_algorithm_is_built_and_tried() -> None:
    @kd.register_algorithm("half")
    class Half(VanillaKD):
        def loss(self, *args: Any, **fields: Any) -> Any:
            output = super().loss(*args, **fields)
            return output._replace(loss=output.loss / 2)

    assert isinstance(algorithms.make_algorithm(DistillConfig(algorithm="half")), Half)

    with pytest.raises(ConfigError, match="failed on the default options: TypeError"):
        kd.register_algorithm("wrong")(int)
    with pytest.raises(ConfigError, match="cannot name"):
        kd.register_algorithm("sft")(Half)
    assert "wrong" not in algorithms.names()


def test_run_directory_carries_what_is_registered(tmp_path: Path) -> None:
    kd.register_divergence("mine")(squared)
    directory = RunDirectory(tmp_path / "run")
    directory.create({})
    registration.ship(directory)
    carried = json.loads((directory.path / "registered.json").read_text())
    assert carried["divergences"]["mine"]["source"].startswith("def squared(")
    # a process that has never seen this file: the code came by value
    code = """
import sys, torch
from kdflow_lab import registration
from kdflow_lab.losses import divergence
from kdflow_lab.rundir import RunDirectory
registration.load(RunDirectory(sys.argv[1]))
print(divergence("mine", torch.zeros(1, 2), torch.tensor([[0.0, 30.0]])).item())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(directory.path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(0.5)


def test_nothing_registered_is_nothing_shipped(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({})
    registration.ship(directory)
    assert not (directory.path / "registered.json").exists()
    registration.load(directory)


def test_damaged_or_foreign_pickle_is_an_error_with_its_name(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({})
    file = directory.path / "registered.json"
    file.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        registration.load(directory)
    file.write_text(json.dumps({"divergences": {"mine": {"pickle": "AAAA", "source": ""}}}))
    with pytest.raises(RunError, match="divergence 'mine' cannot be loaded"):
        registration.load(directory)


def test_run_directory_carries_metrics(tmp_path: Path) -> None:
    """A function of a notebook, with what it refers to, works where it was never defined."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("BASE = 2\ndef sized(answer, row):\n    return BASE * len(answer) + row['n']", names)
    kd.register_metric("sized")(names["sized"])
    directory = RunDirectory(tmp_path / "run")
    directory.create({})
    registration.ship(directory)
    answer_metrics.unregister("sized")
    registration.load(directory)
    loaded = answer_metrics.find("sized")
    assert loaded is not names["sized"]
    assert loaded("abc", {"n": 1}) == 7
