"""Placing the tokens of one response in its text, with the blanks that tokenizers make up.

Metaspace tokenizers write a blank in front of every text. Where only one side does, that blank has
no place in the text; where both do, it is a place that both predict, before the text's first byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdflow_lab.align.units import FIRST_SPECIAL, specials_in_front
from kdflow_lab.align.vocabulary import Vocabulary
from kdflow_lab.align.walk import BLANK, CHANGED, PLACED, Walk, walk


def place_row(
    reference: str,
    vocabulary: Vocabulary,
    pieces: Sequence[str],
    ends: Sequence[int] | None = None,
    spelled: Sequence[int] = (),
) -> Walk:
    """Place the tokens of one side of a row.

    Args:
        reference: The text, a character for each unit.
        vocabulary: The side's.
        pieces: What each token writes, likewise.
        ends: Where the tokenizer says that each token ends, if it is known.
        spelled: Indices of special tokens that stand in the text as they are spelled.
    """
    pieces = list(pieces)
    first = invented_blank(reference, vocabulary, pieces)
    if first is not None:
        pieces[first] = pieces[first][1:]
        if ends is not None and not pieces[first]:
            ends = [*ends[:first], 0, *ends[first + 1 :]]  # its blank takes nothing of the text
    optional = _optional_blanks(vocabulary, pieces, spelled)
    found = walk(reference, pieces, optional, ends)
    if first is not None and not pieces[first]:
        found.became[first] = BLANK
    if vocabulary.blank == "first":
        # A blank that is made up stands right behind what comes before it; else it was changed.
        for index, piece in enumerate(pieces):
            before = found.end[index - 1] if index else 0
            trimmed = index == first or found.end[index] - found.start[index] < len(piece)
            if trimmed and found.became[index] == PLACED and found.start[index] != before:
                found.end[index] = found.start[index]
                found.became[index] = CHANGED
    return found


def invented_blank(reference: str, vocabulary: Vocabulary, pieces: Sequence[str]) -> int | None:
    """Return the token whose leading blank stands before the text, not in it; None without one."""
    if vocabulary.blank == "text":
        return None
    first = next((n for n, one in enumerate(pieces) if one and ord(one[0]) < FIRST_SPECIAL), None)
    if first is None:
        return None
    more = _blanks("".join(pieces[first:])) - _blanks(reference[specials_in_front(reference) :])
    return first if more == 1 else None


def with_blank(
    reference: str, vocabularies: Sequence[Vocabulary], pieces: Sequence[Sequence[str]]
) -> tuple[str, int | None]:
    """Put a blank before the text if both sides write one there, and tell its place."""
    if any(
        invented_blank(reference, vocabulary, one) is None
        for vocabulary, one in zip(vocabularies, pieces, strict=True)
    ):
        return reference, None
    place = specials_in_front(reference)
    return f"{reference[:place]} {reference[place:]}", place


def _blanks(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _optional_blanks(
    vocabulary: Vocabulary, pieces: Sequence[str], spelled: Sequence[int]
) -> list[bool]:
    """Whether the leading blank of each token may be one that the text does not have.

    That of the first token was decided before: there all blanks in front are known.
    """
    if vocabulary.blank == "text":
        return [False] * len(pieces)
    if vocabulary.blank == "any":
        return [piece.startswith(" ") for piece in pieces]
    opens = seen = False
    optional: list[bool] = []
    for index, piece in enumerate(pieces):
        optional.append(opens and piece.startswith(" "))
        special = not piece or ord(piece[0]) >= FIRST_SPECIAL or index in spelled
        seen = seen or not special
        opens = special and seen
    return optional


def reference_of(vocabularies: Sequence[Vocabulary], wrote: Sequence[str], text: str | None) -> str:
    """Choose what the tokens of both sides are placed in: the text, or what one of them wrote."""
    reference = None if text is None else with_specials(text.encode(), wrote)
    if reference is not None:
        return reference

    blanks = [_blanks(one[specials_in_front(one) :]) for one in wrote]
    candidates: list[tuple[bool, bool, int, str]] = []
    for vocabulary, one, more in zip(vocabularies, wrote, blanks, strict=True):
        if vocabulary.blank != "text" and more == min(blanks) + 1:
            place = specials_in_front(one)
            one = one[:place] + one[place + 1 :]
        # The more faithful side is taken for the text; the order does not depend on who teaches.
        candidates.append((vocabulary.blank != "text", bool(vocabulary.changes), -len(one), one))
    return min(candidates)[-1]


def with_specials(text: bytes, wrote: Sequence[str]) -> str | None:
    """Put the special units that both sides wrote around a text; None if some lie within it."""
    around = [_around(one) for one in wrote]
    if any(one is None for one in around):
        return None
    (before, after), (other_before, other_after) = [one or ("", "") for one in around]
    front = "".join(unit for unit in before if unit in other_before)
    back = "".join(unit for unit in after if unit in other_after)
    return front + text.decode("latin-1") + back


def _around(wrote: str) -> tuple[str, str] | None:
    """Split off the special units before and after a text; None if some lie within it."""
    first = specials_in_front(wrote)
    last = len(wrote) - specials_in_front(wrote[:first:-1]) if first < len(wrote) else first
    if any(ord(unit) >= FIRST_SPECIAL for unit in wrote[first:last]):
        return None
    return wrote[:first], wrote[last:]
