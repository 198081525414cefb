"""Packing rows into micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow_lab.data.batches import pack
from kdflow_lab.data.table import TokenTable, tokens_run
from kdflow_lab.errors import ShapeError


def _table(rows):
    """A table of (ids, mask) pairs."""
    lengths = [len(ids) for ids, _ in rows]
    return TokenTable(
        input_ids=np.concatenate([ids for ids, _ in rows]).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        response_mask=np.concatenate([mask for _, mask in rows]).astype(np.uint8),
        row_index=np.arange(len(rows), dtype=np.int32),
    )


@st.composite
def tables(draw):
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(2, 12))
        ids = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        mask = draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))
        rows.append((np.array(ids), np.array([0, *mask])))
    chosen = draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    return rows, chosen


def test_by_hand():
    table = _table([([5, 6, 7, 8], [0, 0, 1, 1]), ([1, 2, 3], [0, 1, 0])])
    batch = pack(table, [1, 0], step=4, index=2)
    assert batch.input_ids.tolist() == [1, 2, 5, 6, 7]
    assert batch.cu_seqlens.tolist() == [0, 2, 5]
    assert batch.rows.tolist() == [0, 3, 4]
    assert batch.labels.tolist() == [2, 7, 8]
    assert (batch.step, batch.index, batch.data_rows) == (4, 2, (1, 0))
    dtypes = {tensor.dtype for tensor in (batch.input_ids, batch.rows, batch.labels)}
    assert dtypes == {torch.int64}
    assert batch.cu_seqlens.dtype == torch.int32


@settings(deadline=None, max_examples=50)
@given(tables())
def test_labels_are_the_trained_next_tokens(case):
    rows, chosen = case
    batch = pack(_table(rows), chosen, step=0, index=0)
    expected_ids, expected_labels, positions = [], [], []
    for row in chosen:
        ids, mask = rows[row]
        for place in range(len(ids) - 1):
            if mask[place + 1]:
                positions.append(len(expected_ids))
                expected_labels.append(ids[place + 1])
            expected_ids.append(ids[place])
    assert batch.input_ids.tolist() == expected_ids
    assert batch.labels.tolist() == expected_labels
    assert batch.rows.tolist() == positions
    assert len(expected_ids) == tokens_run(np.array([len(rows[row][0]) for row in chosen])).sum()


def test_no_rows_make_an_empty_micro_batch():
    batch = pack(_table([([1, 2], [0, 1])]), [], step=0, index=0)
    assert batch.cu_seqlens.tolist() == [0]
    assert [len(tensor) for tensor in (batch.input_ids, batch.rows, batch.labels)] == [0, 0, 0]


def test_table_counts_and_travels():
    table = _table([([5, 6, 7, 8], [0, 0, 1, 1]), ([1, 2, 3], [0, 1, 0])])
    assert (len(table), table.lengths.tolist(), table.response_lengths.tolist()) == (
        2,
        [4, 3],
        [2, 1],
    )
    arrays = table.arrays()
    assert all(hasattr(torch, str(array.dtype)) for array in arrays.values())
    again = TokenTable.from_arrays(arrays)
    assert [part.tolist() for part in again.row(1)] == [[1, 2, 3], [0, 1, 0]]
    with pytest.raises(ShapeError, match="6 mask values"):
        TokenTable(**{**arrays, "response_mask": arrays["response_mask"][1:]})  # type: ignore[arg-type]
