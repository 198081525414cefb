"""Options are checked where they are given, and refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.config import LOSS_ALIASES, SETTABLE, DistillConfig, LabConfig
from kdflow_lab.errors import ConfigError


def _message(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        DistillConfig.parse(**options)
    return str(caught.value)


def test_unknown_option_offers_the_nearest_and_lists_all() -> None:
    message = _message(batchsize=8)
    assert message.startswith("Unknown option 'batchsize'. Did you mean 'batch_size'? Options: ")
    assert all(name in message for name in DistillConfig.model_fields)


def test_unknown_option_of_a_lab_offers_the_labs_options() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'students'"):
        LabConfig.parse(teacher="a", student="b", studnts=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1}, "Option 'lr' = -1 cannot be used: Input should be greater than 0."),
        ({"lr": float("inf")}, "Option 'lr' = inf cannot be used"),
        ({"lr": "fast"}, "Option 'lr' = 'fast' cannot be used: Input should be a valid number"),
        ({"batch_size": 0}, "Option 'batch_size' = 0 cannot be used"),
        ({"kd_ratio": 1.5}, "Option 'kd_ratio' = 1.5 cannot be used"),
        ({"scheduler": "cosin"}, "should be 'cosine', 'linear' or 'constant'"),
        ({"truncation": "left"}, "should be 'error', 'drop' or 'right'"),
    ],
)
def test_wrong_value_is_named_with_what_is_right(options: dict[str, Any], words: str) -> None:
    message = _message(**options)
    assert words in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_every_mistake_has_its_line() -> None:
    assert [line.split("'")[1] for line in _message(lr=0, rows=0, stesp=3).splitlines()] == [
        "rows",
        "lr",
        "stesp",
    ]


@pytest.mark.parametrize(("short", "full"), LOSS_ALIASES.items())
def test_short_names_of_losses_are_spelt_out(short: str, full: str) -> None:
    assert DistillConfig.parse(loss=short).loss == full


def test_steps_and_epochs_exclude_each_other() -> None:
    assert _message(steps=3, epochs=1.0) == "Give either steps or epochs, not both."


def test_contradicting_options_do_not_print_the_data() -> None:
    assert "secret" not in _message(steps=3, epochs=1, data=[{"text": "secret"}])


def test_row_that_fits_no_micro_batch_is_refused_with_both_numbers() -> None:
    message = _message(max_length=4096, micro_batch_tokens=1024)
    assert "max_length=4096" in message and "micro_batch_tokens=1024" in message
    assert DistillConfig.parse(max_length=1024, micro_batch_tokens=1024).max_length == 1024


@pytest.mark.parametrize(
    ("option", "value"),
    [("lora_alpha", 8), ("lora_dropout", 0.1), ("lora_target_modules", ["q_proj"])],
)
def test_lora_options_say_nothing_without_a_rank(option: str, value: Any) -> None:
    message = _message(**{option: value})
    assert (
        message.startswith(f"{option.capitalize()}=") and "has no effect without lora_r" in message
    )
    assert DistillConfig.parse(lora_r=4, **{option: value}).lora_r == 4


def test_lora_alpha_is_twice_the_rank_unless_it_is_given() -> None:
    assert DistillConfig.parse().lora_alpha is None
    made = DistillConfig.parse(lora_r=4)
    assert (made.lora_alpha, made.lora_target_modules) == (8.0, "all-linear")
    assert DistillConfig.parse(lora_r=4, lora_alpha=4).lora_alpha == 4.0
    assert DistillConfig.parse(**made.model_dump()) == made
    assert "nothing would be trained" in _message(lora_r=4, lora_target_modules=[])
    assert "Input should be greater than or equal to 1" in _message(lora_r=0)


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "/tmp/a", "latest"])
def test_name_that_is_no_single_folder_is_refused(name: str) -> None:
    assert "one new folder" in _message(name=name)


def test_settable_options_are_options_with_a_value() -> None:
    assert set(SETTABLE) <= set(DistillConfig.model_fields)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0), ("epochs", 2.0), ("max_length", 10**6), ("stesp", 1)]
)
def test_refused_assignment_leaves_the_config_as_it_was(name: str, value: Any) -> None:
    config = DistillConfig(steps=3)
    before = config.model_dump()
    with pytest.raises(ConfigError, match=r"lr|epochs|max_length|stesp"):
        setattr(config, name, value)
    assert config.model_dump() == before
    assert not hasattr(config, "stesp")


def test_assignment_converts_and_checks_like_the_constructor() -> None:
    config = DistillConfig()
    setattr(config, "lr", "1e-3")  # noqa: B010 - as a command gives it
    config.loss = "rkl"
    assert (config.lr, config.loss) == (1e-3, "reverse_kl")


def test_every_documented_field_has_its_text_as_description() -> None:
    assert "Optimizer steps" in (DistillConfig.model_fields["steps"].description or "")
