"""The table of divergences: parameters, registration, and no torch."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from kdflow_lab import launch
from kdflow_lab.config import LOSS_ALIASES
from kdflow_lab.errors import ConfigError
from kdflow_lab.losses import names


def test_the_table_says_what_the_functions_take() -> None:
    for name, entry in names.BUILT_IN.items():
        taken = list(inspect.signature(entry.load()).parameters.values())
        assert [one.name for one in taken[:2]] == ["student_logits", "teacher_logits"], name
        assert {one.name: one.default for one in taken[2:]} == {
            key: param.default for key, param in entry.params.items()
        }, name
        assert "Source:" in (entry.load().__doc__ or ""), f"{name} names no source"
    assert set(LOSS_ALIASES.values()) <= set(names.NAMES)


def test_names_and_parameters_are_checked_without_torch() -> None:
    code = (
        "import sys; from kdflow_lab import launch; "
        "launch.checked({'loss': 'jsd', 'loss_params': {'beta': 0.3}}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "jsd", "loss_params": {"beta": 2}}, "beta is 2; expected a number from 0 to 1"),
        ({"loss": "jsd", "loss_params": {"bet": 0.1}}, "Did you mean 'beta'"),
        ({"loss": "kl", "loss_params": {"beta": 0.1}}, "It takes none"),
        ({"loss": "jsdd"}, "Did you mean 'jsd'"),
        ({"loss": "mse"}, "hidden_loss='mse'"),
        ({"loss": "cross_entropy"}, "algorithm='sft'"),
        ({"loss_params": 3}, "'loss_params' = 3 cannot be used"),
    ],
)
def test_a_run_with_a_wrong_loss_does_not_start(options, words) -> None:
    with pytest.raises(ConfigError) as caught:
        launch.checked(options)
    assert words in str(caught.value)


def test_another_loss_begins_with_its_own_defaults() -> None:
    assert launch.checked_settings({"loss": "rkl"}) == {"loss": "reverse_kl", "loss_params": {}}
    both = {"loss": "jsd", "loss_params": {"beta": 0.3}}
    assert launch.checked_settings(both) == both
    with pytest.raises(ConfigError, match="from 0 to 1"):
        launch.checked_settings({"loss": "jsd", "loss_params": {"beta": 3}})


def test_registering_takes_two_tensors_and_parameters_with_defaults() -> None:
    @names.register_divergence("mine_test")
    def mine(student_logits, teacher_logits, power=2.0):
        return power

    try:
        assert mine(1, 2) == 2.0
        assert names.names()[-1] == "mine_test"
        assert names.check_params("mine_test", {"power": 3}) == {"power": 3}
        with pytest.raises(ConfigError, match="Did you mean 'power'"):
            names.check_params("mine_test", {"pwer": 3})
        with pytest.raises(ConfigError, match="Did you mean 'mine_test'"):
            names.full_name("mine_tst")
    finally:
        names.unregister_divergence("mine_test")
    assert "mine_test" not in names.names()
    names.unregister_divergence("mine_test")


def test_registering_refuses_what_cannot_work() -> None:
    def right(student_logits, teacher_logits):
        return student_logits

    for name in ("jsd", "kl", "mse", "two words", ""):
        with pytest.raises(ConfigError):
            names.register_divergence(name)(right)
    for wrong in (
        lambda student_logits: 0,
        lambda student, teacher, power: 0,
        lambda student, *teacher: 0,
        lambda student, teacher, **rest: 0,
        3,
    ):
        with pytest.raises(ConfigError):
            names.register_divergence("mine_test")(wrong)  # type: ignore[arg-type]
    assert "mine_test" not in names.names()
