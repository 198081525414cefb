"""Tables behind one another."""

from __future__ import annotations

import numpy as np
import pytest

from kdflow_lab.data.table import TokenTable, join, of_source
from kdflow_lab.errors import ShapeError


def _table(*lengths: int, first: int = 0) -> TokenTable:
    ids = np.arange(sum(lengths), dtype=np.int32) + 100 * first
    return TokenTable(
        input_ids=ids,
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        response_mask=np.concatenate([[0] + [1] * (length - 1) for length in lengths]).astype(
            np.uint8
        ),
        row_index=np.arange(len(lengths), dtype=np.int32),
    )


def _rows(table: TokenTable) -> list[list[int]]:
    return [table.row(number)[0].tolist() for number in range(len(table))]


def test_joined_rows_are_the_rows_and_know_their_source() -> None:
    one, two = _table(3, 2), _table(4, first=5)
    joined = join([of_source(one, 0), of_source(two, 1, first_row=7)])
    assert _rows(joined) == _rows(one) + _rows(two)
    assert joined.source is not None
    assert joined.source.tolist() == [0, 0, 1] and joined.row_index.tolist() == [0, 1, 7]
    assert joined.response_lengths.tolist() == [2, 1, 3]
    taken = joined.take(np.array([2, 0]))
    assert taken.source is not None and taken.source.tolist() == [1, 0]
    again = TokenTable.from_arrays(joined.arrays())
    assert _rows(again) == _rows(joined) and again.source is not None


def test_where_the_teacher_reads_other_rows_only_in_some_it_reads_the_rest_as_they_are() -> None:
    plain, own = _table(3, 2), _table(4)
    other = TokenTable(**{**own.arrays(), "input_ids": own.input_ids + 50})  # type: ignore[arg-type]
    both = TokenTable(**own.arrays(), teacher=other)  # type: ignore[arg-type]
    joined = join([of_source(plain, 0), of_source(both, 1)])
    assert joined.teacher is not None
    assert _rows(joined.teacher) == _rows(plain) + _rows(other)
    assert _rows(joined) == _rows(plain) + _rows(own)
    assert join([plain, own]).teacher is None


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="Only 1 of 2 token tables have 'source'"):
        join([of_source(_table(3), 0), _table(2)])
