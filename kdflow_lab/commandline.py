"""The grammar of `%kdflow` and of the shell's `kdflow`: a command, its arguments and its options.

Options are written `--batch-size 32`, `--batch_size 32`, `--batch-size=32` or `batch_size=32`.
"""

from __future__ import annotations

import re
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdflow_lab.errors import ConfigError, nearest
from kdflow_lab.options import TRUTH, Option

KEY_VALUE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
NOTHING: Mapping[str, Any] = types.MappingProxyType({})
HELP_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command."""

    name: str
    summary: str
    """What it does, in one line."""
    call: Callable[[Any, dict[str, Any]], Any]
    """Takes the session (`kdflow_lab.commands.Session`) and the values that were given."""
    arguments: tuple[Option, ...] = ()
    """What may stand without a name, in order; none is required by the grammar."""
    options: Callable[[], list[Option]] = field(default=list)
    """The options; a function, because to know them may import what only their use needs."""
    needs_lab: bool = False
    starts_run: bool = False
    """Returns a `Run` to watch."""
    takes_cell: bool = False
    """In a notebook its options may stand in the cell as YAML."""

    def known(self) -> dict[str, Option]:
        """Arguments and options by name."""
        return {option.name: option for option in (*self.arguments, *self.options())}


def parse(
    command: Command,
    tokens: Sequence[str],
    *,
    prefix: str = "kdflow",
    values: Mapping[str, Any] = NOTHING,
    extra: Sequence[Option] = (),
) -> dict[str, Any]:
    """Turn the words after a command into named values.

    Args:
        command: The command.
        tokens: The words.
        prefix: What stands before a command (`%kdflow`), for messages.
        values: Words that stand for Python objects (see `kdflow_lab.magics`).
        extra: Further options that are known here.

    Raises:
        ConfigError: An unknown option (the nearest is offered), no value, a word too many.
    """
    known = command.known() | {option.name: option for option in extra}
    arguments = [option.name for option in command.arguments]
    given: dict[str, Any] = {}

    def put(option: Option, word: str) -> None:
        value = values[word] if word in values else option.convert(fill(word, values))
        if option.many:
            given.setdefault(option.name, []).append(value)
            return
        if option.name in given:
            raise ConfigError(f"Option {option.name!r} is given twice.")
        given[option.name] = value

    words = list(tokens)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option, negated = _find(command, known, fill(name, values).replace("-", "_"), prefix)
            if negated and equals:
                raise _negated_value(option)
            if negated:
                put(option, "false")
            elif equals:
                put(option, value)
            elif option.kind == "flag" and not (words and words[0].lower() in TRUTH):
                put(option, "true")
            elif words and not words[0].startswith("--"):
                put(option, words.pop(0))
            else:
                raise ConfigError(f"Option --{name} needs a value.")
        elif pair := KEY_VALUE.fullmatch(word):
            option, negated = _find(command, known, pair[1], prefix)
            if negated:
                raise _negated_value(option)
            put(option, pair[2])
        elif arguments:
            option = known[arguments[0]]
            put(option, word)
            if not option.many:
                arguments.pop(0)
        else:
            raise ConfigError(
                f"{prefix} {command.name} does not take {fill(word, values)!r}. Options are "
                f"written --name value or name=value; {prefix} help {command.name} lists them."
            )
    return given


def fill(word: str, values: Mapping[str, Any]) -> str:
    """Put the text of the objects that stand in a word into their places."""
    for place, value in values.items():
        word = word.replace(place, str(value))
    return word


def _find(
    command: Command, known: Mapping[str, Option], name: str, prefix: str
) -> tuple[Option, bool]:
    """Find an option by name; also `no_…` of a flag, which says false."""
    if name in known:
        return known[name], False
    positive = known.get(name.removeprefix("no_"))
    if positive is not None and positive.kind == "flag":
        return positive, True
    raise unknown_option(command, known, name, prefix)


def _negated_value(option: Option) -> ConfigError:
    """Build the error for `no_packing=true`, which may mean either."""
    return ConfigError(f"--no-{option.name.replace('_', '-')} takes no value: {option.name}=false.")


def unknown_option(
    command: Command, known: Mapping[str, Option], name: str, prefix: str
) -> ConfigError:
    """Build the error for an option that does not exist, offering the nearest one."""
    return ConfigError(
        f"{prefix} {command.name} has no option {name!r}.{nearest(name, known)} "
        f"{prefix} help {command.name} lists all."
    )


def help_text(command: Command, *, prefix: str, extra: Sequence[Option] = ()) -> str:
    """Describe a command with its arguments and options."""
    named = [*command.options(), *extra]
    usage = " ".join(
        [prefix, command.name]
        + [
            f"[{argument.name.upper()}]{' …' if argument.many else ''}"
            for argument in command.arguments
        ]
        + (["[OPTIONS]"] if named else [])
    )
    lines = [usage, "", command.summary]
    if command.arguments:
        lines += [
            "",
            *(_help_line(argument.name.upper(), argument) for argument in command.arguments),
        ]
    if named:
        lines += ["", "Options, written --name VALUE or name=VALUE:"]
        lines += [
            _help_line(f"--{option.name.replace('_', '-')} {option.type_text}".rstrip(), option)
            for option in named
        ]
    return "\n".join(lines)


def _help_line(head: str, option: Option) -> str:
    """One option with its text, wrapped."""
    default = f"[{option.default}]" if option.default else ""
    text = " ".join(part for part in (option.help, default) if part)
    if len(head) > 30:
        head, text = f"  {head}\n{'':34}", text
    else:
        head = f"  {head:<31} "
    wrapped = textwrap.wrap(text, HELP_WIDTH - 34) or [""]
    return (head + f"\n{'':34}".join(wrapped)).rstrip()
