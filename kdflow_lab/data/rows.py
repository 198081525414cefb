"""What a row of data may look like, and in words what is wrong with one that does not.

Three forms are understood, by the columns that are there; the first that fits is taken:

    messages                        a list of {"role", "content"}
    prompt + completion | response  texts, or lists of messages
    text                            plain text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kdflow_lab.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

Form = Literal["messages", "prompt", "text"]
Message = dict[str, Any]

SOURCE = "_source"
"""Column that says where a row came from: `train.jsonl:7`. Not there: rows are counted from 0."""
BAD = "_bad"
"""Column with the reason why a row could not be read; null in good rows."""

RESPONSES = ("completion", "response")
"""Columns that hold the answer to `prompt`; the first that is there is taken."""
TEXT_COLUMNS = ("messages", "prompt", *RESPONSES, "text")
"""Columns that become tokens."""
ROLES = ("system", "developer", "user", "assistant", "tool")

READ_ROWS = 2048
"""Rows held as Python objects at once."""
LISTED_IN_ERROR = 5


class BadRow(Exception):
    """A row that cannot be used; the text is the reason. Never leaves `kdflow_lab.data`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as messages.

    Attributes:
        messages: `role` and `content` of each, and what else the chat template may read.
        first_trained: Assistant turns before this message are context only: they were part of a
            `prompt` column.
        plain: The row was a prompt and a response in two texts: it can do without a chat template.
    """

    messages: list[Message]
    first_trained: int = 0
    plain: bool = False

    def turns(self, which: Literal["all", "last"] = "all") -> list[int]:
        """Return the places of the assistant messages that are trained.

        Raises:
            BadRow: There is none, or one has no text.
        """
        turns = [
            place
            for place, message in enumerate(self.messages)
            if message["role"] == "assistant" and place >= self.first_trained
        ]
        if not turns:
            raise BadRow("there is no assistant turn")
        turns = turns[-1:] if which == "last" else turns
        for turn in turns:
            if not self.messages[turn]["content"].strip():
                what = "the response" if self.plain else f"messages[{turn}].content"
                raise BadRow(f"the assistant's answer is empty ({what})")
        return turns


def form_of(columns: Sequence[str], *, need_response: bool = True) -> Form:
    """Tell the form of rows from their columns.

    Args:
        columns: Names of all columns.
        need_response: False lets `prompt` stand alone.

    Raises:
        DataError: No known column; the message names those found and offers the nearest.
    """
    names = [name for name in columns if name not in (SOURCE, BAD)]
    if "messages" in names:
        return "messages"
    if "prompt" in names and (not need_response or any(name in names for name in RESPONSES)):
        return "prompt"
    if "text" in names:
        return "text"
    close = "".join(nearest(name, TEXT_COLUMNS) for name in names[:20])
    missing = " 'prompt' is there, but no 'completion' or 'response'." if "prompt" in names else ""
    raise DataError(
        f"No column to learn from: found {', '.join(names) or 'none'}.{missing}{close} Expected "
        "'messages' (a list of {role, content}), 'prompt' with 'completion' or 'response', or "
        "'text'. Rename the column: dataset.rename_column(old, new)."
    )


def columns_of(form: Form, columns: Sequence[str]) -> list[str]:
    """Return the columns that rows of this form are read from."""
    if form != "prompt":
        return [form]
    return ["prompt", *[name for name in RESPONSES if name in columns][:1]]


def parse(row: Mapping[str, Any], form: Form) -> Conversation | str:
    """Turn a row into a conversation, or into plain text where its form is `text`.

    Raises:
        BadRow: With the reason.
    """
    if form == "text":
        return _text(row.get("text"), "text")
    if form == "messages":
        return Conversation(_messages(row.get("messages"), "messages"))
    name = next((name for name in RESPONSES if name in row), None)
    prompt = _side(row.get("prompt"), "prompt", "user")
    response = [] if name is None else _side(row.get(name), name, "assistant")
    plain = isinstance(row.get("prompt"), str) and (name is None or isinstance(row[name], str))
    return Conversation(prompt + response, first_trained=len(prompt), plain=plain)


def read(
    dataset: Dataset, form: Form | None
) -> Iterator[tuple[int, str, Conversation | str | BadRow]]:
    """Yield number, source and content of each row.

    Args:
        dataset: Any; its format and its other columns do not matter.
        form: As `form_of` says. None where every row is known to be bad.
    """
    columns = [] if form is None else columns_of(form, dataset.column_names)
    inner = [name for name in (SOURCE, BAD) if name in dataset.column_names]
    dataset = dataset.with_format(None).select_columns([*columns, *inner])
    for start in range(0, len(dataset), READ_ROWS):
        batch = dataset[start : start + READ_ROWS]
        values = {name: list(column) for name, column in batch.items()}
        for place in range(min(READ_ROWS, len(dataset) - start)):
            row = {name: column[place] for name, column in values.items()}
            source = row.get(SOURCE) or f"row {start + place}"
            reason = row.get(BAD)
            if reason is not None or form is None:
                yield start + place, source, BadRow(reason or "it could not be read")
                continue
            try:
                yield start + place, source, parse(row, form)
            except BadRow as problem:
                yield start + place, source, problem


def all_bad(dataset: Dataset) -> bool:
    """Tell whether no row could even be read: then there are no columns to look at."""
    return BAD in dataset.column_names and None not in dataset.with_format(None)[BAD][:]


def bad_rows_error(bad: Sequence[tuple[str, str]], num_rows: int, hint: str) -> DataError:
    """Build the error that lists the first bad rows.

    Args:
        bad: Source and reason of every bad row.
        num_rows: Rows of the data set.
        hint: What to do.
    """
    lines = [f"  {source}: {reason}" for source, reason in bad[:LISTED_IN_ERROR]]
    if len(bad) > LISTED_IN_ERROR:
        lines.append(f"  … and {len(bad) - LISTED_IN_ERROR} more")
    listed = "\n".join(lines)
    return DataError(f"{len(bad)} of {num_rows} rows cannot be used:\n{listed}\n{hint}")


def kind(value: Any) -> str:
    """Name the type of a value as JSON calls it."""
    if isinstance(value, Mapping):
        return "object"
    return "null" if value is None else type(value).__name__


def _side(value: Any, name: str, role: str) -> list[Message]:
    """One side of prompt and response: a text is one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return _messages(value, name)
    raise BadRow(f"{name} is {kind(value)}; expected a text or a list of messages")


def _messages(value: Any, name: str) -> list[Message]:
    """Check a list of messages; keys without a value, as Arrow fills them in, are left out."""
    if not isinstance(value, list):
        raise BadRow(f"{name} is {kind(value)}; expected a list of messages")
    if not value:
        raise BadRow(f"{name} is empty")
    checked = []
    for place, message in enumerate(value):
        where = f"{name}[{place}]"
        if not isinstance(message, Mapping):
            raise BadRow(f"{where} is {kind(message)}; expected {{role, content}}")
        role = message.get("role")
        if role is None:
            raise BadRow(f"{where} has no role")
        if role not in ROLES:
            offer = nearest(role, ROLES) if isinstance(role, str) else ""
            raise BadRow(f"{where}.role is {role!r}; expected one of {', '.join(ROLES)}.{offer}")
        _text(message.get("content"), f"{where}.content")
        checked.append({key: item for key, item in message.items() if item is not None})
    return checked


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{where} is {kind(value)}; expected a text")
    return value
