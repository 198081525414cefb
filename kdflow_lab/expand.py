"""Notebook variables in a magic's line and in its YAML body.

IPython's own expansion turns everything into text, and leaves the whole line as it is, without a
word, when a name does not exist. Here `$name` and `{expression}` stand for the object itself where
they are a whole value, so that `data=$rows` passes the rows, and an unknown name is an error.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from kdflow_lab.errors import ConfigError, nearest

_PLACES = re.compile(r"\$\$|\$([A-Za-z_]\w*)|\{([^{}]*)\}")
_NAME = re.compile(r"\$([A-Za-z_]\w*)")
_IN_TEXT = re.compile(r"\$\$|\$([A-Za-z_]\w*)")


def split(line: str, names: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Split a line into words as a shell does, variables resolved.

    Args:
        line: What was typed after the command.
        names: The notebook's variables.

    Returns:
        The words, and the objects that placeholders in the words stand for.

    Raises:
        ConfigError: An unknown variable, an expression that fails, or an open quotation mark.
    """
    values: dict[str, Any] = {}

    def place(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        key = f"\x00{len(values)}\x00"
        values[key] = _value(match, names)
        return key

    marked = _PLACES.sub(place, line)
    try:
        return shlex.split(marked), values
    except ValueError as error:
        raise ConfigError(f"{error} in: {line}") from None


def _value(match: re.Match[str], names: Mapping[str, Any]) -> Any:
    """What a `$name` or a `{…}` stands for; braces that hold no expression are YAML."""
    if match[1] is not None:
        return lookup(match[1], names)
    try:
        code = compile(match[2].strip(), "<%kdflow>", "eval")
    except SyntaxError:
        from kdflow_lab.options import literal

        return literal(match[0])
    try:
        return eval(code, dict(names))
    except Exception as error:
        hint = nearest(error.name, names) if isinstance(error, NameError) and error.name else ""
        raise ConfigError(f"{match[0]} failed: {type(error).__name__}: {error}.{hint}") from None


def lookup(name: str, names: Mapping[str, Any]) -> Any:
    """Return a variable of the notebook.

    Raises:
        ConfigError: There is none of that name; the nearest is offered.
    """
    if name not in names:
        known = [known for known in names if not known.startswith("_")]
        raise ConfigError(f"The notebook has no variable {name!r}.{nearest(name, known)}")
    return names[name]


def yaml_body(text: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Read the body of `%%kdflow`: a YAML mapping whose values may be or hold `$name`.

    Raises:
        ConfigError: It is no YAML, no mapping, or names an option twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice; YAML would take the last one silently."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise ConfigError(f"Option {twice[0]!r} is given twice.")
            return super().construct_mapping(node, deep)

    try:
        body = yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise ConfigError(f"The cell is no YAML in line {line}: {error.problem}.") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ConfigError(f"The cell is no YAML: {str(error).splitlines()[0]}.") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise ConfigError("The cell must hold options as YAML, one a line, such as `steps: 100`.")
    return {str(key): _resolved(value, names) for key, value in body.items()}


def _resolved(value: Any, names: Mapping[str, Any]) -> Any:
    """Replace a whole value `$name` by the variable, and `$name` in a text by its text."""
    if isinstance(value, dict):
        return {key: _resolved(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, names) for inner in value]
    if not isinstance(value, str):
        return value
    if match := _NAME.fullmatch(value):
        return lookup(match[1], names)
    return _IN_TEXT.sub(lambda match: str(lookup(match[1], names)) if match[1] else "$", value)
