"""The same rows as student and teacher read them, and where their answers lie side by side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.align.ids import align_ids
from kdflow_lab.data.teacher_input import rows_of_teacher
from kdflow_lab.data.tokens import Report, TokenTable, tokenize
from kdflow_lab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.align.vocabulary import TokenizerPair


def tokenize_for_both(
    dataset: Dataset,
    tokenizer: Any,
    teacher_tokenizer: Any,
    *,
    pair: TokenizerPair | None = None,
    teacher_input: str | None = None,
    **options: Any,
) -> tuple[TokenTable, Report]:
    """Tokenize rows for the student and, where it does not read the same ids, for the teacher.

    Each model's own chat template renders the prompt; the answer is common. Rows that one side has
    to leave out are left out on both.

    Args:
        dataset: From `sources.load`, or any other.
        tokenizer: The student's.
        teacher_tokenizer: The teacher's.
        pair: Both vocabularies, if the tokenizers differ; None if they are the same.
        teacher_input: Column with the teacher's own prompt (`rows_of_teacher`); None if it reads
            the student's.
        **options: Of `tokenize`, for both sides.

    Returns:
        The table, whose `teacher` is set where the teacher reads other ids, with places in a common
        text if there is a `pair`; and what became of the rows, counted in the student's tokens.

    Raises:
        DataError: As `tokenize`; or no row is left on both sides; or, with one tokenizer, an answer
            becomes other tokens behind the teacher's prompt.
    """
    if teacher_input is not None:
        options["train_turns"] = "last"
    table, report = tokenize(dataset, tokenizer, **options)
    if pair is None and teacher_input is None:
        return table, report
    theirs = dataset if teacher_input is None else rows_of_teacher(dataset, teacher_input)
    try:
        teacher_table, teacher_report = tokenize(theirs, teacher_tokenizer, **options)
    except DataError as error:
        raise DataError(f"As the teacher reads the rows: {error}") from None
    found = same_rows(table, teacher_table)
    if not len(found[0]):
        raise DataError(
            f"No row is left for both models: {len(table)} fit the student and "
            f"{len(teacher_table)} the teacher, but not the same ones. Raise max_length."
        )
    table = side_by_side(*found, pair=pair)
    return table, _merged(report, teacher_report, table)


def same_rows(table: TokenTable, teacher_table: TokenTable) -> tuple[TokenTable, TokenTable]:
    """Return both tables with the rows alone that are in both, by their `row_index`."""
    _, mine, others = np.intersect1d(
        table.row_index, teacher_table.row_index, assume_unique=True, return_indices=True
    )
    return table.take(mine), teacher_table.take(others)


def side_by_side(
    table: TokenTable, teacher_table: TokenTable, *, pair: TokenizerPair | None
) -> TokenTable:
    """Make one table of the student's and the teacher's, both of the same rows.

    Args:
        table: The student's.
        teacher_table: The teacher's.
        pair: Both vocabularies; None if they are the same.

    Raises:
        DataError: With one tokenizer, an answer becomes other tokens behind the teacher's prompt.
    """
    if pair is None:
        _check_same_answers(table, teacher_table)
    else:
        table, teacher_table = _aligned(pair, table, teacher_table)
    return dataclasses.replace(table, teacher=teacher_table)


def answers(table: TokenTable) -> np.ndarray:
    """Return the trained tokens of all rows, Int64[sum of response_lengths]."""
    return table.input_ids[table.response_mask.astype(bool)].astype(np.int64)


def _aligned(
    pair: TokenizerPair, table: TokenTable, teacher_table: TokenTable
) -> tuple[TokenTable, TokenTable]:
    """Give both sides the places of their trained tokens, counted within each row."""
    found = align_ids(pair, _by_row(teacher_table), _by_row(table))
    ours = found.row_start[found.student_sample]
    theirs = found.row_start[found.teacher_sample]
    return (
        dataclasses.replace(table, start=found.student_start - ours, end=found.student_end - ours),
        dataclasses.replace(
            teacher_table, start=found.teacher_start - theirs, end=found.teacher_end - theirs
        ),
    )


def _by_row(table: TokenTable) -> list[np.ndarray]:
    """The trained tokens of each row."""
    return np.split(answers(table), table.response_offsets[1:-1])


def _check_same_answers(table: TokenTable, teacher_table: TokenTable) -> None:
    """With one tokenizer, student and teacher must read the same answer."""
    same = np.array_equal(table.response_lengths, teacher_table.response_lengths)
    if same and np.array_equal(answers(table), answers(teacher_table)):
        return
    sides = zip(_by_row(table), _by_row(teacher_table), strict=True)
    row = next(number for number, both in enumerate(sides) if not np.array_equal(*both))
    raise DataError(
        f"Row {int(table.row_index[row])}: behind the teacher's own prompt the answer becomes "
        "other tokens. Expected the same answer on both sides. Let both prompts end alike, or use "
        "an algorithm that aligns the two: algorithm='byte_prefix'."
    )


def _merged(report: Report, teacher_report: Report, table: TokenTable) -> Report:
    """What became of the rows; a row that both sides leave out for the same reason counts once."""
    return dataclasses.replace(
        report,
        kept=len(table),
        dropped=max(report.dropped, teacher_report.dropped),
        cut=max(report.cut, teacher_report.cut),
        skipped=max(report.skipped, teacher_report.skipped),
        bad_rows=report.bad_rows or teacher_report.bad_rows,
        tokens=len(table.input_ids),
        response_tokens=int(table.response_lengths.sum()),
    )
