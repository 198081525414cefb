"""The prompts of an on-policy run, as the student and as the teacher reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.data.prompts import prompts_and_bad
from kdflow_lab.data.rows import bad_rows_error
from kdflow_lab.data.table import TokenTable, join, of_source
from kdflow_lab.data.teacher_input import prompts_of_teacher
from kdflow_lab.data.tokens import LISTED_IN_REPORT
from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Prompts:
    """Tokenized prompts.

    Attributes:
        student: One row a prompt, every token untrained.
        teacher: The same prompts in the teacher's ids; None where it reads the student's.
    """

    student: TokenTable
    teacher: TokenTable | None = None

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.student)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Int64[N]: tokens of each prompt, on the side where it has more."""
        if self.teacher is None:
            return self.student.lengths
        return np.maximum(self.student.lengths, self.teacher.lengths)

    def of_source(self, number: int, *, first_row: int = 0) -> Prompts:
        """Return them as those of data set `number`, rows counted from `first_row`."""
        return Prompts(
            of_source(self.student, number, first_row=first_row),
            None if self.teacher is None else of_source(self.teacher, number, first_row=first_row),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, to be shared between ranks."""
        found = {f"student.{name}": array for name, array in self.student.arrays().items()}
        if self.teacher is not None:
            found |= {f"teacher.{name}": array for name, array in self.teacher.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Prompts:
        """Make the prompts that gave these `arrays`."""
        sides = {}
        for side in ("student", "teacher"):
            own = {
                name.removeprefix(f"{side}."): array
                for name, array in arrays.items()
                if name.startswith(f"{side}.")
            }
            sides[side] = TokenTable.from_arrays(own) if own else None
        return cls(**sides)  # type: ignore[arg-type]


def join_prompts(parts: Sequence[Prompts]) -> Prompts:
    """Put the prompts of several data sets behind one another, as `table.join` does."""
    student = join([part.student for part in parts])
    if all(part.teacher is None for part in parts):
        return Prompts(student)
    theirs = [part.student if part.teacher is None else part.teacher for part in parts]
    return Prompts(student, join(theirs))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that give no prompt.

    Attributes:
        dropped: Those that leave no room for an answer.
        bad: Source and reason of each that is bad.
    """

    dropped: int
    bad: tuple[tuple[str, str], ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return plain JSON values, for an event."""
        listed = [{"source": source, "reason": reason} for source, reason in self.bad]
        return {
            "dropped": self.dropped,
            "skipped": len(self.bad),
            "bad_rows": listed[:LISTED_IN_REPORT],
        }


def read_prompts(
    dataset: Dataset,
    tokenizer: Any,
    teacher_tokenizer: Any | None,
    *,
    teacher_input: str | None,
    max_length: int,
    max_new_tokens: int,
    on_bad_rows: Literal["raise", "skip"] = "raise",
) -> tuple[Prompts, LeftOut]:
    """Tokenize the prompts of a data set; its answers are not looked at.

    Args:
        dataset: Rows with messages or with prompts.
        tokenizer: The student's.
        teacher_tokenizer: The teacher's, where it is another one; None if it is the same.
        teacher_input: Column with the teacher's own prompt, or None.
        max_length: Tokens of a whole row.
        max_new_tokens: Of these, tokens of the answer.
        on_bad_rows: `raise`, or `skip` and report.

    Returns:
        The prompts that leave room for an answer, and what was left out.

    Raises:
        DataError: A row is bad (or all are), has no prompt, or none leaves room for an answer.
    """
    ids, bad = prompts_and_bad(dataset, tokenizer)
    other: dict[int, list[int]] | None = None
    if teacher_tokenizer is not None or teacher_input is not None:
        theirs = dataset if teacher_input is None else prompts_of_teacher(dataset, teacher_input)
        other, others_bad = prompts_and_bad(theirs, teacher_tokenizer or tokenizer)
        known = {number for number, *_ in bad}
        bad = sorted(bad + [one for one in others_bad if one[0] not in known])
    numbers = sorted(ids if other is None else ids.keys() & other.keys())
    listed = [(source, reason) for _, source, reason in bad]
    if bad and (on_bad_rows == "raise" or not numbers):
        hint = 'Correct them, or leave them out with on_bad_rows="skip".'
        raise bad_rows_error(listed, len(dataset), hint if numbers else "None is left.")
    found = Prompts(
        _table([ids[number] for number in numbers], numbers),
        None if other is None else _table([other[number] for number in numbers], numbers),
    )
    room = np.flatnonzero(found.longest + max_new_tokens <= max_length)
    if not len(room):
        raise DataError(
            f"No prompt of {len(dataset)} leaves room for an answer: the shortest has "
            f"{int(found.longest.min())} tokens, max_length is {max_length} and max_new_tokens "
            f"{max_new_tokens}. Raise max_length, or lower max_new_tokens."
        )
    teacher = None if found.teacher is None else found.teacher.take(room)
    taken = Prompts(found.student.take(room), teacher)
    return taken, LeftOut(len(found) - len(taken), tuple(listed))


def _table(rows: list[list[int]], numbers: list[int]) -> TokenTable:
    """Put rows of ids behind one another."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.array([one for row in rows for one in row], np.int32)
    return TokenTable(
        input_ids=ids,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        response_mask=np.zeros(len(ids), np.uint8),
        row_index=np.array(numbers, np.int32),
    )
