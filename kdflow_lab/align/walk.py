"""Placing tokens in a text that they do not spell exactly, in one walk from left to right.

Where a token is not what the text has next, the walk goes on at the nearest place where both agree
again: one accent that a normaliser changed never loses the rest of the text. Time is linear: the
search for that place looks at most `FARTHEST` units ahead, and then gives up what it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PLACED, CHANGED, SILENT, BLANK = range(4)
"""What became of a token: placed; not what the text has; writes nothing; a blank that the text does
not have."""

NEAREST, FARTHEST = 48, 768
ANCHOR = 4
"""Units that must agree before the walk goes on; fewer where the text or the tokens end."""
TRIED = 6
"""Places that are tried for one token: where a text repeats itself, all others would fail too."""


@dataclass(slots=True)
class Walk:
    """Where tokens lie in a reference text.

    Attributes:
        start: By token; start = end for those that were not placed.
        end: By token.
        became: By token: PLACED, CHANGED, SILENT or BLANK.
    """

    start: list[int] = field(default_factory=list[int])
    end: list[int] = field(default_factory=list[int])
    became: list[int] = field(default_factory=list[int])

    def add(self, start: int, end: int, became: int) -> None:
        """Record the next token."""
        self.start.append(start)
        self.end.append(end)
        self.became.append(became)


def walk(
    reference: str,
    pieces: Sequence[str],
    optional: Sequence[bool],
    ends: Sequence[int] | None = None,
) -> Walk:
    """Place tokens in a text.

    Args:
        reference: The text, a character for each unit.
        pieces: What each token writes, likewise.
        optional: Whether a token's leading blank may be missing in the text.
        ends: Where the tokenizer says that each token ends in the text, if it is known. It is
            believed where a token is not what the text has next.
    """
    found = Walk()
    place = 0
    token = 0
    while token < len(pieces):
        piece = pieces[token]
        if not piece:
            found.add(place, place, SILENT)
            if ends is not None:
                place = max(place, ends[token])
            token += 1
            continue
        width = _fits(reference, place, piece, optional[token])
        if width is not None:
            found.add(place, place + width, PLACED if width else BLANK)
            place += width
            token += 1
        elif ends is not None:
            end = max(place, ends[token])
            start, width = _last(reference, place, end, piece, optional[token])
            if width:
                found.add(start, start + width, PLACED)
                place = start + width
            else:
                found.add(place, place, CHANGED)
                place = end
            token += 1
        else:
            skipped, place = _resume(reference, place, pieces, optional, token)
            for lost in pieces[token : token + skipped]:
                found.add(place, place, CHANGED if lost else SILENT)
            token += skipped
    return found


def _fits(reference: str, place: int, piece: str, optional: bool) -> int | None:
    """How many units a token takes at a place; None if it does not fit."""
    if reference.startswith(piece, place):
        return len(piece)
    if optional and piece[0] == " " and reference.startswith(piece[1:], place):
        return len(piece) - 1
    return None


def _last(reference: str, start: int, end: int, piece: str, optional: bool) -> tuple[int, int]:
    """Find a token in [start, end), the last one where there are several; its width, or 0."""
    at = reference.rfind(piece, start, end)
    if at >= 0:
        return at, len(piece)
    if optional and piece[0] == " " and len(piece) > 1:
        at = reference.rfind(piece[1:], start, end)
        if at >= 0:
            return at, len(piece) - 1
    return start, 0


def _resume(
    reference: str, place: int, pieces: Sequence[str], optional: Sequence[bool], token: int
) -> tuple[int, int]:
    """Find where text and tokens agree again, at the least loss on both sides together.

    Returns:
        How many tokens are lost, and the place in the text where the next one begins.
    """
    reach = NEAREST
    while True:
        best: tuple[int, int, int] | None = None
        lost = 0
        for ahead in range(token, len(pieces)):
            if lost > reach or (best is not None and lost >= best[0]):
                break
            piece = pieces[ahead]
            if piece:
                limit = place + (reach if best is None else min(reach, best[0] - lost))
                at = _anchor(reference, place, limit, pieces, optional, ahead)
                if at is not None and (best is None or lost + at - place < best[0]):
                    best = (lost + at - place, ahead - token, at)
            lost += len(piece)
        if best is not None:
            return best[1], best[2]
        if len(reference) - place <= reach and lost <= reach:
            return len(pieces) - token, len(reference)  # nothing agrees up to the end
        if reach >= FARTHEST:
            return _give_up(reference, place, pieces, token)
        reach *= 4


def _anchor(
    reference: str,
    place: int,
    limit: int,
    pieces: Sequence[str],
    optional: Sequence[bool],
    token: int,
) -> int | None:
    """Find the first place before `limit` at which a token and the next ones fit."""
    piece = pieces[token]
    sought = piece[1:] if optional[token] and piece[0] == " " and len(piece) > 1 else piece
    early = len(piece) - len(sought)
    at = place - 1
    for _ in range(TRIED):
        at = reference.find(sought, at + 1, limit + len(piece))
        if at < 0:
            return None
        start = at - early if early and at > place and reference[at - 1] == " " else at
        if _agrees(reference, start, pieces, optional, token):
            return start
    return None


def _agrees(
    reference: str, place: int, pieces: Sequence[str], optional: Sequence[bool], token: int
) -> bool:
    """Whether `ANCHOR` units agree from here on, or all up to an end of text or tokens."""
    begin = place
    for ahead in range(token, len(pieces)):
        if not pieces[ahead]:
            continue
        width = _fits(reference, place, pieces[ahead], optional[ahead])
        if width is None:
            return False
        place += width
        if place - begin >= ANCHOR or place == len(reference):
            return place > begin
    return place > begin


def _give_up(reference: str, place: int, pieces: Sequence[str], token: int) -> tuple[int, int]:
    """Leave out half of what was looked at on both sides, so that time stays linear."""
    ahead, lost = token, 0
    while ahead < len(pieces) and lost < FARTHEST // 2:
        lost += len(pieces[ahead])
        ahead += 1
    return ahead - token, min(len(reference), place + FARTHEST // 2)
