"""Options are described by the code that takes them, and typed as that code wants them."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.errors import ConfigError
from kdflow_lab.options import from_model, from_signature, literal

DISTILL = {option.name: option for option in from_model(DistillConfig)}


class Example:
    """For `from_signature`."""

    def call(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | None = None,
        rows: int | None = 500,
        generate: bool = True,
        kind: Literal["a", "b"] = "a",
        model_like: str | Example = "student",
    ) -> None:
        """Do something.

        Args:
            data: What to look at,
                in two lines.
            model: A model. Two sentences.
            rows: Rows taken.

        Returns:
            data: not this.
        """


EXAMPLE = {option.name: option for option in from_signature(Example.call, leave_out=("model",))}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        ("3", 3),
        ("0.5", 0.5),
        ("[0.9, 0.98]", [0.9, 0.98]),
        ("{beta: 0.5}", {"beta": 0.5}),
        ("null", None),
        ("None", None),
        ("auto", "auto"),
        ("1e-4x", "1e-4x"),
    ],
)
def test_literal(text: str, value: Any) -> None:
    got = literal(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["[0.9", "{a: 1", '"a'])
def test_literal_that_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no value: quote it or look at its brackets"):
        literal(text)


def test_literal_builds_no_python_object() -> None:
    with pytest.raises(ConfigError, match="is no value"):
        literal("!!python/object/apply:os.getcwd []")


def test_every_field_of_a_config_is_an_option_with_its_default() -> None:
    assert list(DISTILL) == list(DistillConfig.model_fields)
    assert DISTILL["batch_size"].default == "32"
    assert DISTILL["steps"].default == ""
    assert "Optimizer steps" in DISTILL["steps"].help
    assert "\n" not in DISTILL["data"].help
    lab = {option.name: option for option in from_model(LabConfig, leave_out=("dir",))}
    assert set(lab) == set(LabConfig.model_fields) - {"dir"}
    assert lab["teacher"].default == ""


@pytest.mark.parametrize(
    ("name", "kind", "type_text", "choices"),
    [
        ("data", "text", "TEXT", ()),
        ("name", "text", "TEXT", ()),
        ("packing", "flag", "", ()),
        ("lr", "value", "NUMBER", ()),
        ("steps", "value", "INT", ()),
        ("betas", "value", "[NUMBER, NUMBER]", ()),
        ("chunk_tokens", "value", "INT|auto", ("auto",)),
        ("scheduler", "text", "cosine|linear|constant", ("cosine", "linear", "constant")),
    ],
)
def test_field_becomes_an_option_of_its_kind(
    name: str, kind: str, type_text: str, choices: tuple[str, ...]
) -> None:
    option = DISTILL[name]
    assert (option.kind, option.type_text, option.choices) == (kind, type_text, choices)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "2024", "2024"),  # a name that looks like a number stays a name
        ("name", "none", None),
        ("scheduler", "linear", "linear"),
        ("lr", "1e-4", 1e-4),
        ("packing", "off", False),
        ("packing", "YES", True),
        ("steps", "null", None),
    ],
)
def test_convert(name: str, text: str, value: Any) -> None:
    assert DISTILL[name].convert(text) == value


def test_flag_that_is_neither_is_refused() -> None:
    with pytest.raises(ConfigError, match="Option 'packing' is true or false, not 'maybe'"):
        DISTILL["packing"].convert("maybe")


def test_signature_gives_names_helps_and_defaults() -> None:
    assert list(EXAMPLE) == ["data", "rows", "generate", "kind", "model_like"]
    assert EXAMPLE["data"].help == "What to look at, in two lines."
    assert EXAMPLE["rows"].help == "Rows taken."
    assert EXAMPLE["rows"].default == "500"
    assert EXAMPLE["kind"].kind == "text"
    assert EXAMPLE["generate"].kind == "flag"


def test_values_for_a_signature_are_checked_because_the_function_does_not() -> None:
    assert EXAMPLE["rows"].convert("20") == 20
    assert EXAMPLE["rows"].convert("none") is None
    with pytest.raises(ConfigError, match=r"Option 'rows' = '2\.5' cannot be used: Input should"):
        EXAMPLE["rows"].convert("2.5")
    assert EXAMPLE["model_like"].convert("123") == "123"


def test_options_of_evaluate_can_be_described() -> None:
    from kdflow_lab.lab import Lab

    found = {option.name: option for option in from_signature(Lab.evaluate)}
    assert found["rows"].convert("10") == 10
    assert found["generate"].kind == "flag"
    assert all(option.help for option in found.values())
