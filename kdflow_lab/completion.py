"""What may come next in a `%kdflow` line or in the YAML of a `%%kdflow` cell."""

from __future__ import annotations

from kdflow_lab.commandline import Command
from kdflow_lab.commands import COMMANDS
from kdflow_lab.options import Option
from kdflow_lab.session import Session

MODELS = ("student", "teacher")


def complete_line(line: str, session: Session) -> tuple[str, list[str]]:
    """Complete the line after `%kdflow `.

    Args:
        line: The text up to the cursor.
        session: Knows the runs.

    Returns:
        The word before the cursor, and what it may become; an empty list if anything may come.
    """
    words = line.split(" ")
    words, word = [one for one in words[:-1] if one], words[-1]
    if not words:
        return _matching(word, COMMANDS)
    command = COMMANDS.get(words[0])
    if command is None:
        return word, []
    known = command.known()
    name, equals, value = word.removeprefix("--").partition("=")
    if equals:
        return _matching(value, _values(known.get(name.replace("-", "_")), session))
    before = known.get(words[-1].removeprefix("--").replace("-", "_"))
    if len(words) > 1 and words[-1].startswith("--") and before and before.kind != "flag":
        return _matching(word, _values(before, session))
    if word.startswith("--"):
        return _matching(word, _dashed(command))
    pairs = [f"{option.name}=" for option in command.options()]
    first = [value for option in command.arguments for value in _values(option, session)]
    return _matching(word, [*first, *pairs, *([] if word else _dashed(command))])


def complete_yaml(line: str, command: Command, session: Session) -> tuple[str, list[str]]:
    """Complete a line of the YAML body of `%%kdflow <command>`; as `complete_line`."""
    key, colon, value = line.partition(":")
    known = {option.name: option for option in command.options()}
    if colon:
        return _matching(value.lstrip(), _values(known.get(key.strip()), session))
    return _matching(key, [f"{name}: " for name in known])


def _matching(word: str, candidates: object) -> tuple[str, list[str]]:
    found = [one for one in dict.fromkeys(candidates) if one.startswith(word)]  # type: ignore
    return word, found


def _dashed(command: Command) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in command.known()]


def _values(option: Option | None, session: Session) -> list[str]:
    """Values that an option may take, where they can be listed."""
    if option is None:
        return []
    if option.kind == "flag":
        return ["true", "false"]
    if option.name == "loss":
        from kdflow_lab.losses.names import names

        return list(names())
    if option.name == "algorithm":
        from kdflow_lab.algorithms import names

        return list(names())
    if option.name == "metric":
        from kdflow_lab.answer_metrics import names

        return list(names())
    if option.name == "command":
        return list(COMMANDS)
    if option.name in ("run", "model"):
        return [*(MODELS if option.name == "model" else ()), "latest", *session.run_names()]
    return list(option.choices)
