"""Where the mass of a teacher's tokens goes in the student's vocabulary: tables of whole numbers.

Made once from the two vocabularies, and for written bytes when they are first met. All tables for
written bytes together are as large as the bytes of the teacher's vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kdflow_lab.align.vocabulary import TokenizerPair

NOWHERE = -1
"""Where the mass of a token goes that has no prefix among the student's tokens."""


class Routes(NamedTuple):
    """Tokens of the teacher and where their mass goes.

    Attributes:
        teacher_ids: Int64[K].
        student_ids: Int64[K], -1 for nowhere.
    """

    teacher_ids: NDArray[np.int64]
    student_ids: NDArray[np.int64]


class PrefixTable:
    """Longest student tokens that are prefixes of the teacher's tokens."""

    def __init__(self, pair: TokenizerPair, student_width: int, teacher_width: int) -> None:
        """Index both vocabularies.

        Args:
            pair: What their ids write, and their roles.
            student_width: Ids that the student's head has; those beyond get nothing.
            teacher_width: Ids that the teacher's head has.
        """
        self._by_bytes: dict[bytes, int] = {}
        # byte fallback last: `.` is written by its own token, never by `<0x2E>` if both are there
        for token, one in pair.student.writing():
            if token < student_width:
                self._by_bytes.setdefault(one, token)
        self._longest = max(map(len, self._by_bytes), default=0)
        teacher = pair.teacher.token_bytes[:teacher_width]
        self._spelling = [one or b"" for one in teacher]
        self._tokens = sorted((one, token) for token, one in enumerate(teacher) if one)
        self._bytes = [one for one, _ in self._tokens]
        self._of_rest: dict[bytes, int] = {}
        self._within: dict[bytes, Routes] = {}
        self.student_ids = np.full(teacher_width, NOWHERE, np.int64)
        """Int64[X], where each teacher token's mass goes if nothing of it is written yet."""
        if pair.same:
            shared = min(teacher_width, student_width)
            self.student_ids[:shared] = np.arange(shared)
            return
        for one, token in self._tokens:
            self.student_ids[token] = self.route(one)
        taken: set[int] = set()
        for role, token in pair.teacher.roles.items():
            other = pair.student.roles.get(role)
            if other is None or token >= teacher_width or other >= student_width:
                continue
            if token not in taken:
                self.student_ids[token] = other
                taken.add(token)

    def route(self, rest: bytes) -> int:
        """The longest student token that `rest` begins with; -1 for none."""
        found = self._of_rest.get(rest)
        if found is None:
            found = NOWHERE
            for end in range(min(len(rest), self._longest), 0, -1):
                if (token := self._by_bytes.get(rest[:end])) is not None:
                    found = token
                    break
            self._of_rest[rest] = found
        return found

    def from_start(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the mass of teacher tokens goes of which nothing is written yet."""
        return np.append(self.student_ids, NOWHERE)[np.minimum(tokens, len(self.student_ids))]

    def behind(self, token: int, written: bytes) -> int:
        """Where the mass of a teacher's token goes behind the bytes of it that are written."""
        if token >= len(self._spelling):
            return NOWHERE
        return self.route(self._spelling[token][len(written) :])

    def within(self, written: bytes) -> Routes:
        """The teacher's tokens that begin with `written` and go on, and where the rest goes."""
        routes = self._within.get(written)
        if routes is None:
            first = bisect_left(self._bytes, written)
            last = _end(self._bytes, written, first)
            longer = [(one, token) for one, token in self._tokens[first:last] if one != written]
            depth = len(written)
            routes = Routes(
                np.array([token for _, token in longer], np.int64),
                np.array([self.route(one[depth:]) for one, _ in longer], np.int64),
            )
            self._within[written] = routes
        return routes


def _end(ordered: list[bytes], prefix: bytes, first: int) -> int:
    """Where those end that begin with `prefix`, the first of which is at `first`."""
    kept = prefix.rstrip(b"\xff")
    if not kept:  # nothing is larger than all that begin with 0xff
        return len(ordered)
    return bisect_left(ordered, kept[:-1] + bytes([kept[-1] + 1]), first)
