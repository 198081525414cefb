"""Aligning one text, or one response given as ids, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdflow_lab.align.alignment import SPELLED, AlignedSide, Alignment, Span, SpecialPair
from kdflow_lab.align.pairing import spans as find_spans
from kdflow_lab.align.placing import place_row, reference_of, with_blank, with_specials
from kdflow_lab.align.reasons import OTHER
from kdflow_lab.align.units import (
    FIRST_SPECIAL,
    Units,
    flatten,
    pieces_of,
    specials_in_front,
    unit_tables,
)
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.align.walk import PLACED, Walk
from kdflow_lab.errors import DataError

NO_UNITS = "\uffff"
"""Stands for what a token of one tokenizer writes that writes no text, so that it has a place."""


def align(
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    text: str,
    *,
    add_special_tokens: bool = False,
) -> Alignment:
    """Align the tokens that two tokenizers make of one text, by the bytes they write.

    Linear in the length of the text.

    Args:
        teacher_tokenizer: From `transformers`, with a `tokenizers` backend.
        student_tokenizer: Likewise.
        text: Any text that UTF-8 can hold.
        add_special_tokens: Let each tokenizer add what it adds by itself, such as BOS; these are
            paired by their role.

    Returns:
        Spans that write the same bytes of the text, and what is in no span, with the reason.

    Raises:
        DataError: The text holds half a surrogate pair.
        ModelError: The bytes of a tokenizer's tokens are not known.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text holds {text[error.start]!r} at {error.start}, half of a surrogate pair, "
            "which UTF-8 cannot hold. Expected valid text. Decode it with errors='replace'."
        ) from None
    tokenizers = teacher_tokenizer, student_tokenizer
    pair = TokenizerPair.of(*tokenizers)
    sides = [
        _Tokens.of_text(tokenizer, vocabulary, table, text, add_special_tokens)
        for tokenizer, vocabulary, table in zip(
            tokenizers,
            (pair.teacher, pair.student),
            unit_tables(pair),
            strict=True,
        )
    ]
    reference = with_specials(data, ["".join(side.pieces) for side in sides])
    if reference is None:
        reference = data.decode("latin-1")
    if pair.same and sides[0].ids == sides[1].ids:
        found = sides[0].walk(reference)
        _fill(found, len(reference))
        return _finish(pair, tokenizers, sides, reference, [found, found], identical=True)
    reference, blank = _with_blank(sides, reference)
    walks = [side.walk(reference, blank) for side in sides]
    _demote_spelled(sides, walks)
    return _finish(pair, tokenizers, sides, reference, walks, blank=blank)


def align_response(
    teacher_tokenizer: Any,
    student_tokenizer: Any,
    teacher_ids: Sequence[int],
    student_ids: Sequence[int],
    *,
    text: str | None = None,
) -> Alignment:
    """Align one response given as the token ids of both sides, as `align_ids` does for many.

    Args:
        teacher_tokenizer: From `transformers`, with a `tokenizers` backend.
        student_tokenizer: Likewise.
        teacher_ids: Any ids: the tokenizer's own split, or sampled ones.
        student_ids: Likewise.
        text: The text, if it is known; else what the more faithful side wrote is taken for it.

    Raises:
        DataError: An id is negative.
        ModelError: The bytes of a tokenizer's tokens are not known.
    """
    tokenizers = teacher_tokenizer, student_tokenizer
    pair = TokenizerPair.of(*tokenizers)
    sides = [
        _Tokens.of_ids(tokenizer, vocabulary, table, ids, name)
        for tokenizer, vocabulary, table, ids, name in zip(
            tokenizers,
            (pair.teacher, pair.student),
            unit_tables(pair),
            (teacher_ids, student_ids),
            OTHER,
            strict=True,
        )
    ]
    if pair.same and sides[0].ids == sides[1].ids:
        for side in sides:
            side.pieces = [piece or NO_UNITS for piece in side.pieces]
        reference = "".join(sides[0].pieces)
        found = sides[0].walk(reference)
        return _finish(pair, tokenizers, sides, reference, [found, found], identical=True)
    wrote = ["".join(side.pieces) for side in sides]
    reference = reference_of([pair.teacher, pair.student], wrote, text)
    reference, blank = _with_blank(sides, reference)
    walks = [side.walk(reference) for side in sides]
    return _finish(pair, tokenizers, sides, reference, walks, blank=blank)


@dataclass(slots=True)
class _Tokens:
    """One side's tokens before they are placed.

    Attributes:
        vocabulary: Of the side.
        ids: Token ids.
        tokens: Their spelling.
        pieces: What each writes, a character for each unit.
        ends: Where the tokenizer says that each ends, in bytes of the text; -1 for one that it
            added itself; None if it was not asked.
        spelled: Indices of special tokens that stand in the text.
    """

    vocabulary: Vocabulary
    ids: list[int]
    tokens: list[str]
    pieces: list[str]
    ends: list[int] | None
    spelled: list[int]

    @classmethod
    def of_ids(
        cls, tokenizer: Any, vocabulary: Vocabulary, table: Units, ids: Sequence[int], name: str
    ) -> _Tokens:
        flat, _ = flatten([ids], name)
        pieces = pieces_of(table, table.known(flat))
        known = [one if one < len(vocabulary) else None for one in flat.tolist()]
        tokens = ["" if one is None else _spelling(tokenizer, one) for one in known]
        return cls(vocabulary, flat.tolist(), tokens, pieces, None, [])

    @classmethod
    def of_text(
        cls, tokenizer: Any, vocabulary: Vocabulary, table: Units, text: str, special: bool
    ) -> _Tokens:
        encoded = tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
        ids: list[int] = list(encoded["input_ids"])
        offsets: list[tuple[int, int]] = list(encoded["offset_mapping"])
        flat, _ = flatten([ids], "text")
        pieces = pieces_of(table, table.known(flat))
        bytes_before = np.cumsum([0, *(len(one.encode()) for one in text)]).tolist()
        ends: list[int] = []
        spelled: list[int] = []
        unknown = vocabulary.roles.get("unk")
        for index, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
            silent = vocabulary.token_bytes[token] is None
            if silent and end > start and token != unknown:
                pieces[index] = text[start:end].encode().decode("latin-1")
                spelled.append(index)
            ends.append(-1 if silent and end == start else bytes_before[end])
        return cls(
            vocabulary, ids, [_spelling(tokenizer, one) for one in ids], pieces, ends, spelled
        )

    def walk(self, reference: str, blank: int | None = None) -> Walk:
        """Place the tokens; `blank` is the place of a blank that the tokenizers put in front."""
        ends = self.ends
        if ends is not None:
            front = specials_in_front(reference) + (blank is not None)
            written = [n for n, end in enumerate(ends) if end >= 0]
            last = written[-1] if written else -1
            ends = [
                end + front if end >= 0 else (front if n < last else len(reference))
                for n, end in enumerate(ends)
            ]
        return place_row(reference, self.vocabulary, self.pieces, ends, self.spelled)


def _with_blank(sides: Sequence[_Tokens], reference: str) -> tuple[str, int | None]:
    """See `with_blank`."""
    return with_blank(
        reference, [side.vocabulary for side in sides], [side.pieces for side in sides]
    )


def _spelling(tokenizer: Any, token: int) -> str:
    """A token as its tokenizer spells it."""
    return str(tokenizer.convert_ids_to_tokens(token))


def _fill(found: Walk, length: int) -> None:
    """Let each token of one tokenizer end where the next begins, so that all is covered."""
    if found.start:
        found.start[0] = 0
        found.end = [*found.start[1:], length]
    found.became = [PLACED] * len(found.became)


def _demote_spelled(sides: Sequence[_Tokens], walks: Sequence[Walk]) -> None:
    """Take special tokens out that the other side reads as plain text, or as another role."""
    at = [
        {
            (walks[n].start[index], walks[n].end[index]): index
            for index in side.spelled
            if walks[n].became[index] == PLACED
        }
        for n, side in enumerate(sides)
    ]
    for mine, theirs, found in ((at[0], at[1], walks[0]), (at[1], at[0], walks[1])):
        for where, index in mine.items():
            if where not in theirs:
                found.end[index] = found.start[index]
                found.became[index] = SPELLED


def _finish(
    pair: TokenizerPair,
    tokenizers: tuple[Any, Any],
    sides: Sequence[_Tokens],
    reference: str,
    walks: Sequence[Walk],
    *,
    identical: bool = False,
    blank: int | None = None,
) -> Alignment:
    """Find the spans and turn units into bytes of the text."""
    units = np.array([ord(unit) < FIRST_SPECIAL for unit in reference], np.int64)
    if blank is not None:
        units[blank] = 0
    byte_at: list[int] = np.concatenate([[0], np.cumsum(units)]).tolist()
    arrays = [np.array(part, np.int64) for one in walks for part in (one.start, one.end)]
    spans: list[Span]
    if identical:
        spans = [(n, n + 1, n, n + 1) for n in range(len(sides[0].ids))]
    else:
        spans = [(a, b, c, d) for a, b, c, d in find_spans(*arrays).tolist()]
    student = walks[1]
    span_bytes = [
        (byte_at[student.start[first]], byte_at[student.end[after - 1]])
        for _, _, first, after in spans
    ]
    data = bytes(ord(unit) for unit, one in zip(reference, units, strict=True) if one)
    teacher_side, student_side = (
        AlignedSide(
            tuple(side.ids),
            tuple(side.tokens),
            tuple(
                (byte_at[start], byte_at[end])
                for start, end in zip(one.start, one.end, strict=True)
            ),
            tuple(one.became),
        )
        for side, one in zip(sides, walks, strict=True)
    )
    special = [
        SpecialPair(role, token, pair.student.roles[role])
        for role, token in pair.teacher.roles.items()
        if role in pair.student.roles
    ]
    return Alignment(
        data.decode(errors="replace"),
        data,
        teacher_side,
        student_side,
        spans,
        span_bytes,
        special,
        pair,
        tokenizers,
    )
