"""A pydantic model that speaks in words: the base of all that a user may ask for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from kdflow_lab.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="StrictModel")


class StrictModel(BaseModel):
    """A pydantic model that refuses unknown options and speaks in one sentence a mistake."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    if not TYPE_CHECKING:  # a type checker shall go on checking assignments itself

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuse a value as `parse` does, and keep the old one."""
            before = dict(self.__dict__)  # pydantic keeps a value that contradicts another option
            try:
                super().__setattr__(name, value)
            except pydantic.ValidationError as error:
                self.__dict__.update(before)
                raise ConfigError(_in_words(type(self), error)) from None

    @classmethod
    def fields_in(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Take the options out of a record that holds more, such as a run's `config.yaml`.

        Those that an older record lacks are left out, so that `parse` gives them their defaults.
        """
        return {name: record[name] for name in cls.model_fields if name in record}

    @classmethod
    def parse(cls: type[ConfigT], **options: Any) -> ConfigT:
        """Build the config from keyword options.

        Raises:
            ConfigError: An option is unknown (the nearest is offered) or its value does not fit.
        """
        try:
            return cls(**options)
        except pydantic.ValidationError as error:
            raise ConfigError(_in_words(cls, error)) from None


def _in_words(cls: type[StrictModel], error: pydantic.ValidationError) -> str:
    """One line for each mistake that pydantic found."""
    lines: list[str] = []
    for mistake in error.errors():
        name = ".".join(str(part) for part in mistake["loc"][:1])
        error_in_words = mistake.get("ctx", {}).get("error")
        if isinstance(error_in_words, ConfigError):
            lines.append(str(error_in_words))
        elif not name:  # options that contradict each other: the input would be all of them
            message = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"{message[0].upper()}{message[1:]}.")
        elif mistake["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            lines.append(f"Unknown option {name!r}.{hint} Options: {', '.join(cls.model_fields)}.")
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"Option {name!r} = {mistake.get('input')!r} cannot be used: {message}.")
    return "\n".join(dict.fromkeys(lines))
