"""What the ids of two tokenizers write, and which of them write the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

UNPAIRED_ROLES = frozenset({"pad", "unk"})
"""Roles that stand for nothing in a text: two such tokens take no place in it."""

Blank = Literal["text", "first", "any"]


@dataclass(frozen=True)
class Vocabulary:
    """What every id of a tokenizer writes.

    Attributes:
        token_bytes: By id; None for an id that writes no text: special tokens, holes, padding.
        roles: Ids of special tokens by what they are for: `turn_end`, `eos`, `bos`, `turn_start`,
            `pad`, `unk` …; those without a known role by their own spelling.
        blank: Whose leading blank may be one that the text does not have: nobody's (`text`), that
            of the first token of a text or after a special token (`first`, as Metaspace), that of
            every token (`any`, as WordPiece, where the blank is only a guess).
        byte_fallback: Ids such as `<0x41>`, used only for what no other id writes.
        changes: How the tokenizer changes texts, in words; empty if no probe text was changed.
    """

    token_bytes: tuple[bytes | None, ...]
    roles: Mapping[str, int] = field(default_factory=dict[str, int])
    blank: Blank = "text"
    byte_fallback: frozenset[int] = frozenset()
    changes: str = ""

    def __len__(self) -> int:
        """Number of ids, holes included."""
        return len(self.token_bytes)

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        """Int32[V]: bytes that each id writes; 0 for those that write none."""
        return np.array([len(one or b"") for one in self.token_bytes], np.int32)

    def writing(self) -> Iterator[tuple[int, bytes]]:
        """Yield (id, bytes) of the ids that write something, byte fallback last."""
        late: list[tuple[int, bytes]] = []
        for token, one in enumerate(self.token_bytes):
            if one and token in self.byte_fallback:
                late.append((token, one))
            elif one:
                yield token, one
        yield from late


@dataclass(frozen=True)
class TokenizerPair:
    """The vocabularies of teacher and student, and the ids that mean the same in both.

    Attributes:
        teacher: The teacher's.
        student: The student's.
        same: Whether both tokenizers split every text alike into the same ids.
    """

    teacher: Vocabulary
    student: Vocabulary
    same: bool = False

    @classmethod
    def of(cls, teacher_tokenizer: Any, student_tokenizer: Any) -> TokenizerPair:
        """Read two `transformers` tokenizers; the pair is kept for the next call with them.

        Raises:
            ModelError: A tokenizer's tokens cannot be turned into bytes.
        """
        from kdflow_lab.align.shared_vocab import difference
        from kdflow_lab.align.token_bytes import vocabulary_of

        teacher, student = vocabulary_of(teacher_tokenizer), vocabulary_of(student_tokenizer)
        partners = _pairs.setdefault(teacher_tokenizer, WeakKeyDictionary())
        kept = partners.get(student_tokenizer)
        if kept is None or kept.teacher is not teacher or kept.student is not student:
            same = teacher_tokenizer is student_tokenizer or not difference(
                teacher_tokenizer, student_tokenizer
            )
            kept = partners[student_tokenizer] = cls(teacher, student, same=same)
        return kept

    @cached_property
    def shared(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of teacher and student, Int64[K] each, that write the same bytes or share a role.

        In the order of the teacher's ids; all of them where the tokenizers are the same. Of several
        ids with the same bytes the lowest counts, one of the byte fallback only where there is no
        other.
        """
        if self.same:
            common = np.arange(min(len(self.teacher), len(self.student)), dtype=np.int64)
            return common, common
        by_bytes: dict[bytes, int] = {}
        for token, one in self.student.writing():
            by_bytes.setdefault(one, token)
        pairs: dict[int, int] = {}
        taken: set[int] = set()
        for _, token, other in self._by_role():
            if token not in pairs and other not in taken:
                pairs[token] = other
                taken.add(other)
        for token, one in self.teacher.writing():
            other = by_bytes.get(one)
            if other is not None and token not in pairs and other not in taken:
                pairs[token] = other
                taken.add(other)
        ordered = sorted(pairs.items())
        teacher = np.array([token for token, _ in ordered], np.int64)
        return teacher, np.array([other for _, other in ordered], np.int64)

    @cached_property
    def special_units(self) -> tuple[dict[int, int], dict[int, int]]:
        """Special tokens of teacher and of student that count as one place, by id: its number.

        Equal numbers stand for the same in a text. Where one side ends both a turn and a text with
        one token and the other with two, the three share a number.
        """
        number: dict[tuple[str, int], int] = {}
        for role, token, other in self._by_role():
            if role in UNPAIRED_ROLES:
                continue
            ours, theirs = ("teacher", token), ("student", other)
            known = sorted({number[one] for one in (ours, theirs) if one in number})
            new = known[0] if known else len(number)
            for one, old in number.items():
                if old in known:
                    number[one] = new
            number[ours] = number[theirs] = new
        return (
            {token: n for (side, token), n in number.items() if side == "teacher"},
            {token: n for (side, token), n in number.items() if side == "student"},
        )

    def _by_role(self) -> Iterator[tuple[str, int, int]]:
        """Yield each role that both sides have, and the ids of both."""
        for role, token in self.teacher.roles.items():
            other = self.student.roles.get(role)
            if other is not None:
                yield role, token, other


_pairs: WeakKeyDictionary[Any, WeakKeyDictionary[Any, TokenizerPair]] = WeakKeyDictionary()
"""The pairs that were read, by the tokenizers of teacher and student."""
