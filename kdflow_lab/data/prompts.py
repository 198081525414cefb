"""What an evaluation and a rollout need of a row: its prompt, its right answers, another answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdflow_lab.data.encode import Encoder
from kdflow_lab.data.rows import (
    BAD,
    RESPONSES,
    SOURCE,
    BadRow,
    Conversation,
    Form,
    all_bad,
    bad_rows_error,
    form_of,
    parse,
    read,
)
from kdflow_lab.data.template import Template, before_answer
from kdflow_lab.data.tokens import no_template
from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def prompts(dataset: Dataset, tokenizer: Any) -> list[list[int]]:
    """Return the token ids that each row's last answer is generated from.

    The conversation before its last assistant turn, or all of it where none is there, with the
    generation prompt. Without a chat template: the text of `prompt`.

    Args:
        dataset: Rows with `messages`, or `prompt` with or without an answer. To ask for the same
            rows as in a `TokenTable`, pass `dataset.select(table.row_index)`.
        tokenizer: The model's, from `transformers`.

    Raises:
        DataError: Rows of plain text, bad rows, or messages without a chat template.
    """
    found, bad = prompts_and_bad(dataset, tokenizer)
    if bad:
        listed = [(source, reason) for _, source, reason in bad]
        raise bad_rows_error(listed, len(dataset), "Correct them, or leave them out.")
    return list(found.values())


def prompts_and_bad(
    dataset: Dataset, tokenizer: Any
) -> tuple[dict[int, list[int]], list[tuple[int, str, str]]]:
    """Return the token ids of each prompt by the number of its row, and the rows that are bad.

    Args:
        dataset: As in `prompts`.
        tokenizer: Likewise.

    Returns:
        Ids by row; and number, source and reason of each bad row, in order.

    Raises:
        DataError: Rows of plain text, or messages without a chat template.
    """
    form = None if all_bad(dataset) else form_of(dataset.column_names, need_response=False)
    if form == "text":
        raise DataError(
            "Rows of the column 'text' have no prompt to answer. Expected 'messages' or 'prompt'. "
            "Evaluate plain text with generate=False."
        )
    numbers, sources, found = [], [], []
    bad: list[tuple[int, str, str]] = []
    for number, source, row in read(dataset, form):
        if isinstance(row, Conversation):
            numbers.append(number)
            sources.append(source)
            found.append(row)
        else:
            bad.append((number, source, str(row)))
    encoder = Encoder(tokenizer)
    opening: list[int] = []
    if encoder.has_template:
        texts = Template(tokenizer).prompts(found)
    else:
        if not all(row.plain for row in found):
            raise no_template()
        texts = [row.messages[0]["content"] for row in found]
        opening = encoder.opening
    for number, source, text in zip(numbers, sources, texts, strict=True):
        if isinstance(text, BadRow):
            bad.append((number, source, str(text)))
    good = [place for place, text in enumerate(texts) if not isinstance(text, BadRow)]
    ids = encoder.ids([str(texts[place]) for place in good])
    prompts = zip(good, ids, strict=True)
    return {numbers[place]: [*opening, *one] for place, one in prompts}, sorted(bad)


def references(row: Mapping[str, Any]) -> list[str]:
    """Return the right answers of a row.

    Args:
        row: With `answers` (a list of texts, or one), else with a last assistant message or a
            `completion` or `response`.

    Returns:
        The texts; none where the row has no answer.

    Raises:
        DataError: The row has no known column, or cannot be read.
    """
    answers = row.get("answers")
    if isinstance(answers, str):
        return [answers]
    if answers:
        return [str(answer) for answer in answers]
    conversation = _conversation(row)
    if conversation is None:
        return []
    rest = conversation.messages[len(before_answer(conversation)) :]
    return [rest[0]["content"]] if rest else []


def with_answer(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a row as `messages` whose last answer is `text`.

    What followed that answer is left out, and so are `prompt`, the response and this package's
    inner columns; other columns stay.

    Raises:
        DataError: The row has no messages and no prompt, or cannot be read.
    """
    conversation = _conversation(row)
    if conversation is None:
        raise DataError("A row of plain text has no answer. Expected 'messages' or 'prompt'.")
    gone = ("messages", "prompt", *RESPONSES, SOURCE, BAD)
    answer = {"role": "assistant", "content": text}
    return {
        "messages": [*before_answer(conversation), answer],
        **{name: value for name, value in row.items() if name not in gone},
    }


def _conversation(row: Mapping[str, Any]) -> Conversation | None:
    """Parse one row; None for plain text."""
    form: Form = form_of(list(row), need_response=False)
    try:
        parsed = parse(row, form)
    except BadRow as problem:
        reason = row.get(BAD) or problem
        raise DataError(
            f"A row ({row.get(SOURCE) or 'without source'}) is bad: {reason}."
        ) from None
    return parsed if isinstance(parsed, Conversation) else None
