"""Options of a command line, described by the code that takes them.

`from_model` reads the fields of a pydantic model, `from_signature` the parameters of a function, so
that a command line knows exactly what the Python call knows.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from kdflow_lab.errors import ConfigError

TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option or argument of a command."""

    name: str
    help: str = ""
    type_text: str = "TEXT"
    """What the value looks like, for `help`."""
    default: str = ""
    kind: Literal["text", "value", "flag"] = "text"
    """`text` is taken as it is, `value` is read as YAML (numbers, lists, mappings, null)."""
    choices: tuple[str, ...] = ()
    check: Any = None
    """A type that the value must fit, where the called function does not check it."""
    many: bool = False
    """The last argument of a command, of which several may stand behind each other."""

    def convert(self, text: str) -> Any:
        """Turn what was typed into a value.

        Raises:
            ConfigError: It is no value of this option.
        """
        if self.kind == "flag":
            if text.lower() not in TRUTH:
                raise ConfigError(f"Option {self.name!r} is true or false, not {text!r}.")
            return TRUTH[text.lower()]
        value = literal(text) if self.kind == "value" else text
        if self.kind == "text" and text.lower() in ("none", "null") and not self.choices:
            value = None
        if self.check is not None:
            import pydantic

            try:
                value = pydantic.TypeAdapter(self.check).validate_python(value)
            except pydantic.ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise ConfigError(
                    f"Option {self.name!r} = {text!r} cannot be used: {reason}."
                ) from None
        return value


def literal(text: str) -> Any:
    """Read a YAML scalar, list or mapping; also `1e-4`, which YAML 1.1 takes for a text."""
    import yaml

    if text.lower() == "none":
        return None
    try:
        return (
            float(text)
            if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text)
            else yaml.safe_load(text)
        )
    except yaml.YAMLError:
        raise ConfigError(f"{text!r} is no value: quote it or look at its brackets.") from None


def from_model(model: Any, *, leave_out: Sequence[str] = ()) -> list[Option]:
    """Describe the fields of a pydantic model; their docstrings are the help."""
    return [
        Option(
            name=name,
            help=" ".join((field.description or "").split()),
            type_text=_type_text(field.annotation),
            default=""
            if field.is_required()
            else _default_text(field.get_default(call_default_factory=True)),
            kind=_kind(field.annotation),
            choices=_choices(field.annotation),
        )
        for name, field in model.model_fields.items()
        if name not in leave_out
    ]


def from_signature(function: Callable[..., Any], *, leave_out: Sequence[str] = ()) -> list[Option]:
    """Describe the parameters of a function; the `Args:` of its docstring are the help."""
    helps = _argument_helps(function)
    options = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", *leave_out):
            continue
        annotation = _builtin(parameter.annotation)
        options.append(
            Option(
                name=parameter.name,
                help=helps.get(parameter.name, ""),
                type_text=_type_text(annotation),
                default=""
                if parameter.default is parameter.empty
                else _default_text(parameter.default),
                kind=_kind(annotation),
                choices=_choices(annotation),
                check=None if _kind(annotation) == "text" else annotation,
            )
        )
    return options


def _builtin(annotation: Any) -> Any:
    """The type behind an annotation that is a text; `Any` if it names what is unknown here."""
    try:
        return eval(annotation, {"Literal": Literal}) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def _argument_helps(function: Callable[..., Any]) -> dict[str, str]:
    """The first sentences of the `Args:` section of a Google-style docstring."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2]
    section = re.split(r"\n\S", section)[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return (
        get_args(annotation)
        if get_origin(annotation) in (Union, types.UnionType)
        else (annotation,)
    )


def _choices(annotation: Any) -> tuple[str, ...]:
    found = [get_args(member) for member in _members(annotation) if get_origin(member) is Literal]
    return tuple(str(choice) for choices in found for choice in choices)


def _kind(annotation: Any) -> Literal["text", "value", "flag"]:
    """`text` where every alternative is a text, so that a name like `2024` stays one."""
    if annotation is bool:
        return "flag"
    texts = [
        member in (str, Any, types.NoneType) or get_origin(member) is Literal
        for member in _members(annotation)
    ]
    return "text" if all(texts) else "value"


def _type_text(annotation: Any) -> str:
    """What a value looks like: `INT`, `A|B`, `{…}`."""
    if annotation is bool:
        return ""
    names = {int: "INT", float: "NUMBER", str: "TEXT", Any: "TEXT"}
    parts = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            parts += [str(choice) for choice in get_args(member)]
        elif member is not types.NoneType:
            shown = {dict: "{NAME: NUMBER}", tuple: "[NUMBER, NUMBER]"}.get(get_origin(member))
            parts.append(names.get(member) or shown or "VALUE")
    return "|".join(parts)


def _default_text(value: Any) -> str:
    return "" if value is None or value == {} else str(value)
