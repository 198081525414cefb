"""Rows of which every token is looked at, prompts included, and where their tokens stand.

P counts the tokens that predict a next one, over all rows, one row behind the other.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kdflow_lab.data.table import TokenTable, tokens_run


def every_token(table: TokenTable) -> TokenTable:
    """Return the rows with every token but the first of each as one to be predicted.

    The teacher's side is left out: it is of response tokens alone.
    """
    mask = np.ones_like(table.response_mask)
    mask[table.offsets[:-1]] = 0  # nothing predicts a row's first token
    return dataclasses.replace(
        table, response_mask=mask, teacher=None, start=None, end=None, logprobs=None
    )


def cu_seqlens_of(table: TokenTable) -> np.ndarray:
    """Return Int32[n + 1]: where each row's predicted tokens start, and P."""
    ends = np.cumsum(tokens_run(table.lengths))
    return np.concatenate([[0], ends]).astype(np.int32)


def predicted(table: TokenTable) -> dict[str, np.ndarray]:
    """Return what the rows say, and where they are: the first arrays of a probe file.

    Args:
        table: Its `response_mask` says which tokens are an answer's.
    """
    is_last = np.zeros(len(table.input_ids), dtype=bool)
    is_last[table.offsets[1:] - 1] = True
    place = np.flatnonzero(~is_last)
    return {
        "input_ids": table.input_ids[place],
        "labels": table.input_ids[place + 1],
        "response": table.response_mask[place + 1].astype(bool),
        "cu_seqlens": cu_seqlens_of(table),
        "row_index": table.row_index,
    }


def places(cu_seqlens: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    """Return where the predicted tokens of some rows stand among the P of all, Int64[T]."""
    runs = [np.arange(cu_seqlens[row], cu_seqlens[row + 1], dtype=np.int64) for row in rows]
    return np.concatenate([np.zeros(0, np.int64), *runs])
