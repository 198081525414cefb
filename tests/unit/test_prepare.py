"""What a run refuses before its first step."""

from __future__ import annotations

import numpy as np
import pytest

from kdflow_lab import prepare
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import DataError
from kdflow_lab.jobs import TeacherInfo

LENGTHS = [3, 9, 5]


def _table() -> TokenTable:
    total = sum(LENGTHS)
    return TokenTable(
        input_ids=np.zeros(total, np.int32),
        offsets=np.cumsum([0, *LENGTHS]).astype(np.int64),
        response_mask=np.zeros(total, np.uint8),
        row_index=np.array([10, 11, 12], np.int32),
    )


def _teacher(longest: int | None) -> TeacherInfo:
    return TeacherInfo("", "sglang", "", 8, "float32", 1, {}, longest=longest)


def test_a_row_that_the_teacher_cannot_take_is_named() -> None:
    """Of 9 tokens the last is not run."""
    with pytest.raises(DataError, match=r"Row 11 has 9 tokens, .* up to 8\. Lower max_length to 8"):
        prepare._check_lengths(_table(), _teacher(7))


def test_prompts_have_no_more_room_than_the_teacher() -> None:
    assert prepare.longest_row(256, _teacher(7)) == 8
    assert prepare.longest_row(6, _teacher(7)) == 6
    assert prepare.longest_row(256, _teacher(None)) == prepare.longest_row(256, None) == 256


@pytest.mark.parametrize("longest", [8, None])
def test_rows_that_it_takes_pass(longest: int | None) -> None:
    prepare._check_lengths(_table(), _teacher(longest))
    prepare._check_lengths(_table(), None)
