"""One grammar for the magic and the shell: every spelling, and every mistake in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.commandline import Command, help_text, parse
from kdflow_lab.commands import COMMANDS, find, overview
from kdflow_lab.config import SETTABLE, DistillConfig
from kdflow_lab.errors import ConfigError
from kdflow_lab.options import Option

DISTILL = COMMANDS["distill"]


def _parse(line: str, command: Command = DISTILL, **options: Any) -> dict[str, Any]:
    return parse(command, line.split(), **options)


@pytest.mark.parametrize(
    "line",
    [
        "--batch-size 8",
        "--batch_size 8",
        "--batch-size=8",
        "--batch_size=8",
        "batch_size=8",
    ],
)
def test_every_spelling_of_an_option(line: str) -> None:
    assert _parse(line) == {"batch_size": 8}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--packing", True),
        ("--packing true", True),
        ("--packing off", False),
        ("--packing=no", False),
        ("packing=1", True),
        ("--no-packing", False),
        ("--no_packing", False),
    ],
)
def test_every_spelling_of_a_flag(line: str, value: bool) -> None:
    assert _parse(line) == {"packing": value}


def test_flag_leaves_the_next_option_alone() -> None:
    assert _parse("--packing --lr 1") == {"packing": True, "lr": 1}


def test_flag_leaves_a_word_that_is_no_truth_to_the_arguments() -> None:
    command = Command(
        name="x",
        summary="",
        call=lambda session, given: None,
        arguments=(Option(name="run"),),
        options=lambda: [Option(name="force", kind="flag")],
    )
    assert _parse("--force mine", command) == {"force": True, "run": "mine"}


def test_last_argument_may_stand_several_times() -> None:
    command = Command(
        name="x",
        summary="",
        call=lambda session, given: None,
        arguments=(Option(name="run", many=True),),
        options=lambda: [Option(name="rows", kind="value")],
    )
    assert _parse("a --rows 3 b run=c", command) == {"run": ["a", "b", "c"], "rows": 3}
    assert _parse("", command) == {}


@pytest.mark.parametrize("line", ["no_packing=true", "--no-packing=false", "no_packing=false"])
def test_negated_flag_with_a_value_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"--no-packing takes no value: packing=false"):
        _parse(line)


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("lr=1e-4", {"lr": 1e-4}),
        ("--lr -1", {"lr": -1}),
        ("betas=[0.9,0.98]", {"betas": [0.9, 0.98]}),
        ("chunk_tokens=auto", {"chunk_tokens": "auto"}),
        ("data=a=b.jsonl", {"data": "a=b.jsonl"}),
        ("name=", {"name": ""}),
        ("--data zoo/tasks loss=rkl", {"data": "zoo/tasks", "loss": "rkl"}),
        ("", {}),
    ],
)
def test_values(line: str, given: dict[str, Any]) -> None:
    got = _parse(line)
    assert got == given
    assert [type(value) for value in got.values()] == [type(value) for value in given.values()]


def test_arguments_stand_in_order_beside_options() -> None:
    export = COMMANDS["export"]
    assert _parse("mine out --dir runs", export) == {"run": "mine", "path": "out", "dir": "runs"}
    assert _parse("--dir runs mine path=out", export) == {
        "run": "mine",
        "path": "out",
        "dir": "runs",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--bach-size 8", r"has no option 'bach_size'\. Did you mean 'batch_size'\?"),
        ("bach_size=8", r"has no option 'bach_size'\. Did you mean 'batch_size'\?"),
        ("--no-lr", r"kdflow distill has no option 'no_lr'"),
        ("--lr", r"Option --lr needs a value"),
        ("--lr --steps 3", r"Option --lr needs a value"),
        ("lr=1 --lr 2", r"Option 'lr' is given twice"),
        ("--packing --no-packing", r"Option 'packing' is given twice"),
        ("zoo/tasks", r"kdflow distill does not take 'zoo/tasks'\. Options are written --name"),
        ("betas=[0.9", r"'\[0\.9' is no value"),
    ],
)
def test_mistake_is_said_in_words(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _parse(line)
    assert "\n" not in str(caught.value)


def test_prefix_stands_in_messages() -> None:
    with pytest.raises(ConfigError, match=r"^%kdflow pause has no option .* %kdflow help pause"):
        _parse("--dirr x", COMMANDS["pause"], prefix="%kdflow")


def test_word_that_stands_for_an_object_passes_it_and_inside_a_word_its_text() -> None:
    rows = [{"text": "a"}]
    values = {"\0000\000": rows, "\0001\000": 7}
    got = _parse("data=\0000\000 --steps \0001\000 name=run-\0001\000", values=values)
    assert got["data"] is rows
    assert got["steps"] == 7
    assert got["name"] == "run-7"


def test_object_in_a_wrong_place_is_shown_as_its_text() -> None:
    with pytest.raises(ConfigError, match="does not take 'seven'"):
        _parse("\0000\000", values={"\0000\000": "seven"})
    with pytest.raises(ConfigError, match=r"has no option 'seven'"):
        _parse("--\0000\000 1", values={"\0000\000": "seven"})


def test_extra_options_are_known_where_they_are_given() -> None:
    extra = [Option(name="teacher")]
    assert _parse("--teacher zoo/teacher", extra=extra) == {"teacher": "zoo/teacher"}
    with pytest.raises(ConfigError, match="has no option 'teacher'"):
        _parse("--teacher zoo/teacher")


# -- help -----------------------------------------------------------------------------------------


def test_help_of_distill_explains_every_option() -> None:
    text = help_text(DISTILL, prefix="%kdflow")
    assert text.startswith("%kdflow distill [OPTIONS]\n")
    for name, field in DistillConfig.model_fields.items():
        assert f"  --{name.replace('_', '-')}" in text
        if field.description:
            assert field.description.split()[0] in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_every_command_has_help(command: Command) -> None:
    text = help_text(command, prefix="kdflow")
    assert command.summary in text
    for argument in command.arguments:
        assert f"[{argument.name.upper()}]" in text
        assert argument.help


def test_help_shows_defaults_and_choices() -> None:
    text = help_text(DISTILL, prefix="kdflow")
    assert "--scheduler cosine|linear|constant" in text
    assert "--batch-size INT" in text and "[32]" in text


# -- the table ------------------------------------------------------------------------------------


def test_unknown_command_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^kdflow has no command 'distil'\. Did you mean 'dist"):
        find("distil", "kdflow")


def test_overview_has_a_line_for_every_command() -> None:
    lines = overview("%kdflow").splitlines()
    for command in COMMANDS.values():
        assert any(
            line.startswith(f"%kdflow {command.name} ") and line.endswith(command.summary)
            for line in lines
        )


def test_set_takes_exactly_what_may_change_during_a_run() -> None:
    options = {option.name for option in COMMANDS["set"].options()}
    assert options == {*SETTABLE, "dir"}


def test_sft_has_no_options_that_speak_of_a_teacher() -> None:
    known = COMMANDS["sft"].known()
    assert "lr" in known
    assert not {"loss", "kd_ratio", "kd_temperature", "algorithm"} & set(known)
