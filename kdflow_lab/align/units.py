"""What token ids write, as numbers and as text: bytes, and one unit for each special token.

A *unit* is a byte of the UTF-8 text, or one special token that has a role on both sides; the latter
are numbered from 256 on. A token without bytes and without such a role writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary
from kdflow_lab.errors import DataError

Ints = NDArray[np.int64]
SPACE = 0x20
FIRST_SPECIAL = 256


@dataclass(frozen=True, slots=True)
class Units:
    """What every id of a vocabulary writes, laid end to end.

    Attributes:
        units: Uint16[sum of the widths].
        offset: Int64[V + 1], where an id's units begin; the last entry stands for ids past V.
        width: Int64[V + 1], how many they are.
    """

    units: NDArray[np.uint16]
    offset: Ints
    width: Ints

    @classmethod
    def of(cls, vocabulary: Vocabulary, specials: Mapping[int, int]) -> Units:
        """Lay out a vocabulary; `specials` numbers the special tokens that are one unit."""
        pieces = [one or b"" for one in vocabulary.token_bytes]
        width = np.array([*map(len, pieces), 0], np.int64)
        for token in specials:
            width[token] = 1
            pieces[token] = b"?"
        offset = np.cumsum(width) - width
        units = np.frombuffer(b"".join(pieces), np.uint8).astype(np.uint16)
        for token, number in specials.items():
            units[offset[token]] = FIRST_SPECIAL + number
        return cls(units, offset, width)

    def known(self, ids: Ints) -> Ints:
        """Replace ids past the vocabulary, such as those of a padded head, by one without units."""
        return np.minimum(ids, len(self.width) - 1)


def write(table: Units, begin: Ints, width: Ints) -> NDArray[np.uint16]:
    """Write tokens one after the other; `begin` is where each one's units lie in the table."""
    total = int(width.sum())
    ends = np.cumsum(width)
    return table.units[np.repeat(begin - (ends - width), width) + np.arange(total)]


def as_text(units: NDArray[np.uint16]) -> str:
    """Turn units into a text, a character for each."""
    return units.astype("<u2").tobytes().decode("utf-16-le")


def specials_in_front(text: str) -> int:
    """Count the special units before the first byte of a text."""
    return next((n for n, unit in enumerate(text) if ord(unit) < FIRST_SPECIAL), len(text))


def flatten(rows: Sequence[ArrayLike], side: str) -> tuple[Ints, Ints]:
    """Join rows of ids; return the ids and the lengths of the rows.

    Raises:
        DataError: An id is negative, or a row is not a list of whole numbers.
    """
    arrays = [np.asarray(row, dtype=None if len(row) else np.int64) for row in rows]  # type: ignore[arg-type]
    for number, one in enumerate(arrays):
        if one.ndim != 1 or one.dtype.kind not in "iu":
            raise DataError(
                f"Row {number} of the {side}'s ids has shape {list(one.shape)} and dtype "
                f"{one.dtype}. Expected a list of token ids. Pass one list for each response."
            )
    lengths = np.array([len(one) for one in arrays], np.int64)
    ids = np.concatenate(arrays).astype(np.int64) if arrays else np.empty(0, np.int64)
    if len(ids) and int(ids.min()) < 0:
        raise DataError(
            f"The {side}'s ids hold {int(ids.min())}. Expected token ids of 0 and more. Take "
            "padding and ignored labels out of the responses before they are aligned."
        )
    return ids, lengths


def unit_tables(pair: TokenizerPair) -> tuple[Units, Units]:
    """Return what the ids of teacher and student write; kept with the pair."""
    kept: tuple[Units, Units] | None = pair.__dict__.get("_unit_tables")
    if kept is None:
        teacher, student = pair.special_units
        kept = Units.of(pair.teacher, teacher), Units.of(pair.student, student)
        pair.__dict__["_unit_tables"] = kept
    return kept


def pieces_of(table: Units, ids: Ints) -> list[str]:
    """What each of some known ids writes, a character for each unit."""
    text = as_text(write(table, table.offset[ids], table.width[ids]))
    ends = np.cumsum(table.width[ids]).tolist()
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
