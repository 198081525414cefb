"""Context distillation: the teacher answers another prompt than the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdflow_lab.data.rows import (
    BAD,
    SOURCE,
    BadRow,
    Conversation,
    Form,
    form_of,
    kind,
    parse,
    read,
)
from kdflow_lab.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset


def rows_of_teacher(dataset: Dataset, column: str) -> Dataset:
    """Return the rows as the teacher shall read them: its own prompt, and the same last answer.

    Args:
        dataset: Rows with messages, or with prompt and completion.
        column: Holds the teacher's prompt of each row: a text (one user turn) or a list of
            messages.

    Raises:
        DataError: There is no such column, or the rows are plain text.
    """
    from kdflow_lab.data.arrow import build

    prompts, form = _column(dataset, column)
    if form == "text":
        raise DataError(
            "teacher_input needs an answer that both models read. Rows of plain text have none: "
            "give messages, or prompt and completion."
        )
    lines: list[tuple[str, dict[str, Any] | BadRow]] = []
    for number, source, row in read(dataset, form):
        try:
            lines.append((source, {"messages": messages_of_teacher(row, prompts[number], column)}))
        except BadRow as problem:
            lines.append((source, problem))
    return build(lines)


def messages_of_teacher(
    row: Conversation | str | BadRow, prompt: Any, column: str
) -> list[dict[str, Any]]:
    """Return one row as the teacher shall read it.

    Args:
        row: As the student reads it, parsed.
        prompt: The teacher's own.
        column: Where that stands.

    Raises:
        BadRow: The row is bad or plain text, or the prompt is neither a text nor messages.
    """
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, str):
        raise BadRow("it is plain text, and teacher_input needs an answer that both models read")
    return [*_prompt(prompt, column), row.messages[row.turns("last")[-1]]]


def prompts_of_teacher(dataset: Dataset, column: str) -> Dataset:
    """Return the teacher's own prompts alone, one a row, for answers that are yet to be written.

    Args:
        dataset: Rows with messages or a prompt; answers are not needed.
        column: As in `rows_of_teacher`.

    Raises:
        DataError: There is no such column.
    """
    from kdflow_lab.data.arrow import build

    prompts, form = _column(dataset, column, need_response=False)
    lines: list[tuple[str, dict[str, Any] | BadRow]] = []
    for number, source, row in read(dataset, form):
        try:
            if isinstance(row, BadRow):
                raise row
            # as a prompt, whose last assistant turn is no answer to be left out
            lines.append((source, {"prompt": _prompt(prompts[number], column)}))
        except BadRow as problem:
            lines.append((source, problem))
    return build(lines)


def _column(
    dataset: Dataset, column: str, *, need_response: bool = True
) -> tuple[Sequence[Any], Form]:
    """The teacher's prompts, and what the rows have besides.

    Raises:
        DataError: There is no such column.
    """
    names = [name for name in dataset.column_names if name not in (SOURCE, BAD)]
    if column not in names:
        raise DataError(
            f"teacher_input names the column {column!r}, which the data does not have."
            f"{nearest(column, names)} Columns: {', '.join(names)}."
        )
    form = form_of(dataset.column_names, need_response=need_response)
    return dataset.with_format(None)[column], form


def _prompt(value: Any, column: str) -> list[dict[str, Any]]:
    """The teacher's prompt as messages."""
    if not isinstance(value, str | list):
        raise BadRow(f"{column} is {kind(value)}; expected a text or a list of messages")
    parsed = parse({"prompt": value}, "prompt")
    return [] if isinstance(parsed, str) else parsed.messages
