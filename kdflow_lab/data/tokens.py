"""Tokenizing a data set: rows in, token ids and a response mask out, and a report of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdflow_lab.data.encode import Encoded, Encoder
from kdflow_lab.data.rows import (
    READ_ROWS,
    BadRow,
    Conversation,
    all_bad,
    bad_rows_error,
    form_of,
    read,
)
from kdflow_lab.data.table import TokenTable
from kdflow_lab.data.template import Template
from kdflow_lab.errors import DataError, unknown_name

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Report", "TokenTable", "tokenize"]

LISTED_IN_REPORT = 20
OPTIONS = {
    "on_bad_rows": ("raise", "skip"),
    "truncation": ("drop", "right", "error"),
    "train_turns": ("all", "last"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the rows of a data set.

    Attributes:
        rows: Rows read.
        kept: Rows in the table.
        dropped: Rows left out because they are longer than `max_length`.
        cut: Rows kept, but cut at `max_length`.
        skipped: Rows left out because they are bad.
        bad_rows: Source and reason of the first bad rows.
        tokens: Tokens of the kept rows.
        response_tokens: Those of them that are trained.
    """

    rows: int
    kept: int
    dropped: int
    cut: int
    skipped: int
    bad_rows: list[tuple[str, str]]
    tokens: int
    response_tokens: int

    def summary(self) -> dict[str, Any]:
        """Return everything as plain JSON values, for an event."""
        bad = [{"source": source, "reason": reason} for source, reason in self.bad_rows]
        names = ("rows", "kept", "dropped", "cut", "skipped", "tokens", "response_tokens")
        return {**{name: getattr(self, name) for name in names}, "bad_rows": bad}


@dataclass
class Kept:
    """Rows as they come, before they are one table.

    Attributes:
        max_length: As in `tokenize`.
        truncation: Likewise.
        ids: Of each kept row, Int32.
        masks: Likewise, UInt8.
        index: Their numbers.
        dropped: Rows left out because they are longer than `max_length`.
        cut: Rows that were cut.
        bad: Number, source and reason of each bad row.
    """

    max_length: int
    truncation: str
    ids: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    dropped: int = 0
    cut: int = 0
    bad: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, number: int, source: str, encoded: Encoded) -> None:
        """Keep a row, cut it, or note why it is left out."""
        ids, mask = np.asarray(encoded[0], np.int32), np.asarray(encoded[1], np.uint8)
        mask[:1] = 0  # nothing stands before the first token that could predict it
        length = len(ids)
        if length > self.max_length:
            if self.truncation == "drop":
                self.dropped += 1
                return
            if self.truncation == "error":
                reason = f"it has {length} tokens, more than max_length={self.max_length}"
                self.bad.append((number, source, reason))
                return
            ids, mask = ids[: self.max_length], mask[: self.max_length]
        if not mask.any():
            behind = f" within max_length={self.max_length}" if length > len(ids) else ""
            self.bad.append((number, source, f"no token of it can be trained{behind}"))
            return
        self.cut += length > len(ids)
        self.ids.append(ids)
        self.masks.append(mask)
        self.index.append(number)

    def table(self) -> TokenTable:
        """Join the rows."""
        lengths = np.array([len(ids) for ids in self.ids], np.int64)
        return TokenTable(
            input_ids=np.concatenate(self.ids),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            response_mask=np.concatenate(self.masks),
            row_index=np.asarray(self.index, np.int32),
        )


def tokenize(
    dataset: Dataset,
    tokenizer: Any,
    *,
    max_length: int,
    on_bad_rows: Literal["raise", "skip"] = "raise",
    truncation: Literal["error", "drop", "right"] = "drop",
    train_turns: Literal["all", "last"] = "all",
) -> tuple[TokenTable, Report]:
    """Turn rows into token ids, and say which of them are trained.

    - `messages`: the model's chat template; the assistant's turns are trained, with the token that
      ends them. What follows the last trained answer is left out: no trained token sees it.
    - `prompt` and `completion` (or `response`): the same, and of the turns only those in the
      completion. Without a chat template, and with two plain texts, the ids of both are joined and
      the end-of-sequence token is added.
    - `text`: with the special tokens that the tokenizer adds by itself; every token but the first
      is trained.

    Args:
        dataset: From `sources.load`, or any other.
        tokenizer: The student's, from `transformers`.
        max_length: Tokens of a row.
        on_bad_rows: `raise`, or `skip` and report.
        truncation: Of rows longer than `max_length`: `drop` leaves them out and counts them,
            `right` cuts their end off, `error` makes them bad rows.
        train_turns: Every assistant turn of a conversation, or the last one.

    Returns:
        The tokens, and what became of the rows.

    Raises:
        DataError: Bad rows, no known column, a chat template that is missing or cannot be cut into
            turns, or no row left.
        ConfigError: An option has a value that does not exist.
    """
    given = {"on_bad_rows": on_bad_rows, "truncation": truncation, "train_turns": train_turns}
    for name, value in given.items():
        if value not in OPTIONS[name]:
            raise unknown_name(f"value of {name}", value, OPTIONS[name])
    form = None if all_bad(dataset) else form_of(dataset.column_names)
    encode = RowEncoder(tokenizer, train_turns)
    kept = Kept(max_length, truncation)
    waiting: list[tuple[int, str, Conversation | str]] = []

    def flush() -> None:
        encoded = encode([row for *_, row in waiting], [source for _, source, _ in waiting])
        for (number, source, _), one in zip(waiting, encoded, strict=True):
            if isinstance(one, BadRow):
                kept.bad.append((number, source, str(one)))
            else:
                kept.add(number, source, one)
        waiting.clear()

    for number, source, row in read(dataset, form):
        if isinstance(row, BadRow):
            kept.bad.append((number, source, str(row)))
        else:
            waiting.append((number, source, row))
        if len(waiting) == READ_ROWS:
            flush()
    flush()
    return _finish(kept, len(dataset), on_bad_rows)


def _finish(kept: Kept, num_rows: int, on_bad_rows: str) -> tuple[TokenTable, Report]:
    """Raise for bad rows and for an empty table, or make table and report."""
    bad = [(source, reason) for _, source, reason in sorted(kept.bad)]
    if bad and on_bad_rows == "raise":
        hint = 'Correct them, or leave them out with on_bad_rows="skip".'
        raise bad_rows_error(bad, num_rows, hint)
    if not kept.index:
        reasons = [f"{kept.dropped} have more than max_length={kept.max_length} tokens"]
        reasons += (
            [f"{len(bad)} are bad, the first ({bad[0][0]}) because {bad[0][1]}"] if bad else []
        )
        raise DataError(
            f"No row is left of {num_rows}: {'; '.join(reasons)}. Expected at least one. "
            "Raise max_length, or look at the data."
        )
    table = kept.table()
    report = Report(
        rows=num_rows,
        kept=len(table),
        dropped=kept.dropped,
        cut=kept.cut,
        skipped=len(bad),
        bad_rows=bad[:LISTED_IN_REPORT],
        tokens=len(table.input_ids),
        response_tokens=int(table.response_lengths.sum()),
    )
    return table, report


class RowEncoder:
    """Turns parsed rows into ids and masks, many at once."""

    def __init__(self, tokenizer: Any, train_turns: Literal["all", "last"]) -> None:
        """Take the model's tokenizer; `train_turns` as in `tokenize`."""
        self._encoder = Encoder(tokenizer)
        self._eos = tokenizer.eos_token_id
        self._template = Template(tokenizer) if self._encoder.has_template else None
        self._train_turns: Literal["all", "last"] = train_turns

    def __call__(
        self, rows: Sequence[Conversation | str], sources: Sequence[str]
    ) -> Sequence[Encoded | BadRow]:
        """Encode conversations and plain texts, in their order.

        Args:
            rows: Any number.
            sources: Where each came from, for errors.

        Raises:
            DataError: As `tokenize`.
        """
        texts = [row for row in rows if isinstance(row, str)]
        pairs = zip(rows, sources, strict=True)
        others = [(row, source) for row, source in pairs if not isinstance(row, str)]
        of_texts = iter(self._texts(texts))
        of_others = iter(self._conversations([row for row, _ in others], [at for _, at in others]))
        return [next(of_texts if isinstance(row, str) else of_others) for row in rows]

    def _texts(self, texts: Sequence[str]) -> list[Encoded | BadRow]:
        return [
            (ids, [1] * len(ids)) if text.strip() else BadRow("text is empty")
            for text, ids in zip(texts, self._encoder.ids(texts, special=True), strict=True)
        ]

    def _conversations(
        self, rows: Sequence[Conversation], sources: Sequence[str]
    ) -> Sequence[Encoded | BadRow]:
        if not rows:
            return []
        if self._template is None:
            return self._plain(rows)
        cut = self._template.pieces(rows, sources, self._train_turns)
        encoded = iter(self._encoder.pieces([one for one in cut if not isinstance(one, BadRow)]))
        return [one if isinstance(one, BadRow) else next(encoded) for one in cut]

    def _plain(self, rows: Sequence[Conversation]) -> list[Encoded | BadRow]:
        """Join the ids of prompt and response, and the end-of-sequence token."""
        if not all(row.plain for row in rows):
            raise no_template()
        if self._eos is None:
            raise DataError(
                "The tokenizer has neither a chat template nor an end-of-sequence token, so that "
                "no answer could end. Set tokenizer.eos_token."
            )
        prompts = self._encoder.ids([row.messages[0]["content"] for row in rows])
        responses = self._encoder.ids([row.messages[1]["content"] for row in rows])
        encoded: list[Encoded | BadRow] = []
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            try:
                row.turns()
            except BadRow as problem:
                encoded.append(problem)
                continue
            before = self._encoder.opening + prompt
            answer = response if response[-1:] == [self._eos] else [*response, self._eos]
            encoded.append((before + answer, [0] * len(before) + [1] * len(answer)))
        return encoded


def no_template() -> DataError:
    """Build the error for messages that nothing can render."""
    return DataError(
        "The tokenizer has no chat template, and the rows are messages. Set "
        "tokenizer.chat_template and save it with the model, or give rows with the texts "
        "'prompt' and 'completion'."
    )
