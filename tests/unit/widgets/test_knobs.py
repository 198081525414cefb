"""Which options a figure lets its reader change, and with what values."""

from __future__ import annotations

import pytest

from kdflow_lab.config import SETTABLE, DistillConfig
from kdflow_lab.losses.names import names, register_divergence, unregister_divergence
from kdflow_lab.widgets._knobs import fork_fields, in_force, knobs, parsed, settable

CONFIG = DistillConfig(steps=100, lr=1e-3).model_dump()


def _values(config, *events):
    return {knob["name"]: knob["value"] for knob in knobs(in_force(config, events))}


def test_the_knobs_of_a_run():
    expected = {"lr": "0.001", "kd_temperature": "1", "kd_ratio": "0.5", "loss": "forward_kl"}
    assert _values(CONFIG) == expected
    assert _values(CONFIG | {"on_policy": True})["lmbda"] == "1"
    assert _values(CONFIG | {"algorithm": "sft"}) == {"lr": "0.001"}


def test_a_knob_shows_what_was_set_last():
    sets = [
        {"event": "set", "step": 5, "changes": {"lr": 2e-4}},
        {"event": "set", "step": 9, "changes": {"lr": 3e-4, "loss": "jsd"}},
    ]
    assert _values(CONFIG, *sets)["lr"] == "0.0003"
    assert _values(CONFIG, *sets)["loss"] == "jsd"


def test_the_loss_is_a_menu_of_all_names_registered_ones_too():
    def loss(config=CONFIG):
        return next(knob for knob in knobs(in_force(config, [])) if knob["name"] == "loss")

    assert loss()["choices"] == list(names())
    assert loss(CONFIG | {"loss": "elsewhere"})["choices"][-1] == "elsewhere"
    register_divergence("mine_here")(lambda student_logits, teacher_logits: student_logits[:, 0])
    try:
        assert "mine_here" in loss()["choices"]
    finally:
        unregister_divergence("mine_here")


def test_a_fork_may_change_every_option_that_means_something():
    fields = fork_fields(in_force(CONFIG | {"on_policy": True, "hidden_loss": "mse"}, []))
    assert {field["name"] for field in fields} == set(SETTABLE)
    assert fields[0]["name"] == "steps"
    assert "lmbda" not in settable(CONFIG)
    assert "hidden_weight" not in settable(CONFIG)


def test_steps_are_those_that_the_epochs_came_to():
    config = DistillConfig(epochs=2).model_dump()
    started = {"event": "started", "steps": 77}
    (steps,) = [one for one in fork_fields(in_force(config, [started])) if one["name"] == "steps"]
    assert steps["value"] == "77"
    assert in_force(config, [])["steps"] is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", " 1e-3 ", "1e-3"),
        ("loss_params", "{beta: 0.3}", {"beta": 0.3}),
        ("loss_params", "{beta: ", "{beta: "),
    ],
)
def test_what_is_typed_is_left_to_the_options_own_check(name, text, value):
    assert parsed(name, text) == value
