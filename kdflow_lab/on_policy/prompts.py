"""The prompts of an on-policy run, as the student and as the teacher reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.data.prompts import prompts
from kdflow_lab.data.table import TokenTable
from kdflow_lab.data.teacher_input import prompts_of_teacher
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


def read_prompts(
    dataset: Dataset,
    tokenizer: Any,
    teacher_tokenizer: Any | None,
    *,
    teacher_input: str | None,
    max_length: int,
    max_new_tokens: int,
) -> tuple[Prompts, int]:
    """Tokenize the prompts of a data set; its answers are not looked at.

    Args:
        dataset: Rows with messages or with prompts.
        tokenizer: The student's.
        teacher_tokenizer: The teacher's, where it is another one; None if it is the same.
        teacher_input: Column with the teacher's own prompt, or None.
        max_length: Tokens of a whole row.
        max_new_tokens: Of these, tokens of the answer.

    Returns:
        The prompts that leave room for an answer, and how many did not.

    Raises:
        DataError: A row has no prompt, or none leaves room for an answer.
    """
    student = _table(prompts(dataset, tokenizer))
    teacher = None
    if teacher_tokenizer is not None or teacher_input is not None:
        theirs = dataset if teacher_input is None else prompts_of_teacher(dataset, teacher_input)
        teacher = _table(prompts(theirs, teacher_tokenizer or tokenizer))
    found = Prompts(student, teacher)
    room = np.flatnonzero(found.longest + max_new_tokens <= max_length)
    if not len(room):
        raise DataError(
            f"No prompt of {len(dataset)} leaves room for an answer: the shortest has "
            f"{int(found.longest.min())} tokens, max_length is {max_length} and max_new_tokens "
            f"{max_new_tokens}. Raise max_length, or lower max_new_tokens."
        )
    taken = Prompts(student.take(room), None if teacher is None else teacher.take(room))
    return taken, len(found) - len(taken)


def _table(rows: list[list[int]]) -> TokenTable:
    """Put rows of ids behind one another."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.array([one for row in rows for one in row], np.int32)
    return TokenTable(
        input_ids=ids,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        response_mask=np.zeros(len(ids), np.uint8),
        row_index=np.arange(len(rows), dtype=np.int32),
    )
