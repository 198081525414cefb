"""Batches that a run left out, kept as `<step>-<rank>.safetensors` to be looked at.

Micro-batch m of the rank, with the tensors of `MicroBatch`, all Int64 but `cu_seqlens` (Int32):

    m.input_ids, m.cu_seqlens, m.rows, m.labels
    m.data_rows     the row of the data that each of its rows came from

The metadata, all strings: `schema` "1", `step`, and `ranks`, as many as took the step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.data.batches import MicroBatch
from kdflow_lab.errors import RunError

SCHEMA = "1"
PARTS = ("input_ids", "cu_seqlens", "rows", "labels", "data_rows")


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One row of a kept batch.

    Attributes:
        row: Its number in the data, counted from 0.
        input_ids: Int64[n], the tokens that are run: all but the row's last.
        rows: Int64[T], positions in [0, n) that predict a trained token.
        labels: Int64[T], those tokens.
    """

    row: int
    input_ids: Tensor
    rows: Tensor
    labels: Tensor


def save(
    path: Path,
    batches: Sequence[MicroBatch],
    row_index: np.ndarray,
    *,
    step: int,
    ranks: int,
) -> None:
    """Write one rank's micro-batches of a step; the file is there whole or not at all.

    Args:
        path: `<step>-<rank>.safetensors`.
        batches: In order.
        row_index: Int32[N], the row of the data that each row of the token table came from.
        step: Counted from 1.
        ranks: That took the step.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {}
    for number, batch in enumerate(batches):
        for part in PARTS[:-1]:
            tensors[f"{number}.{part}"] = getattr(batch, part).contiguous()
        data_rows = row_index[np.asarray(batch.data_rows, dtype=np.int64)]
        tensors[f"{number}.data_rows"] = torch.from_numpy(data_rows.astype(np.int64))
    metadata = {"schema": SCHEMA, "step": str(step), "ranks": str(ranks)}
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        unfinished.write_bytes(to_bytes(tensors, metadata=metadata))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def steps(folder: Path) -> list[int]:
    """List the steps whose batches lie in `folder`, in order; other files are not looked at."""
    names = [path.stem.split("-") for path in folder.glob("[0-9]*-[0-9]*.safetensors")]
    return sorted(
        {int(name[0]) for name in names if len(name) == 2 and all(one.isdigit() for one in name)}
    )


def read(folder: Path, step: int) -> tuple[list[KeptRow], list[int]]:
    """Read the batch of a step, one row of the data after another.

    Returns:
        Its rows, and the ranks whose part was not kept.

    Raises:
        RunError: A file is none that a run wrote.
    """
    ranks = _ranks(folder, step)
    rows: list[KeptRow] = []
    missing = []
    for rank in range(ranks):
        path = folder / f"{step}-{rank}.safetensors"
        if path.exists():
            rows += _read(path)[0]
        else:
            missing.append(rank)
    return sorted(rows, key=lambda row: row.row), missing


def _ranks(folder: Path, step: int) -> int:
    """The ranks that took a step; files of an earlier attempt with more of them count no more."""
    newest = max(folder.glob(f"{step}-*.safetensors"), key=lambda path: path.stat().st_mtime)
    return _read(newest)[1]


def _read(path: Path) -> tuple[list[KeptRow], int]:
    """The rows of one rank's file, and the ranks that took its step."""
    from safetensors import SafetensorError, safe_open

    rows = []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                raise ValueError(f"its schema is {metadata.get('schema')!r}, expected {SCHEMA!r}")
            numbers = sorted({int(name.partition(".")[0]) for name in file.keys()})  # noqa: SIM118
            for number in numbers:
                rows += _rows_of(*(file.get_tensor(f"{number}.{part}") for part in PARTS))
            return rows, int(metadata["ranks"])
    except (SafetensorError, ValueError, KeyError, IndexError, OSError) as error:
        raise RunError(
            f"{path} is no batch that a run kept: {error}. Remove it, or replay another step."
        ) from None


def _rows_of(
    input_ids: Tensor, cu_seqlens: Tensor, rows: Tensor, labels: Tensor, data_rows: Tensor
) -> list[KeptRow]:
    """Cut a micro-batch into its rows."""
    ends = cu_seqlens.tolist()
    if len(ends) != len(data_rows) + 1 or ends[-1] != len(input_ids) or len(rows) != len(labels):
        raise ValueError("its parts do not fit each other")
    found = []
    for number, (start, end) in enumerate(pairwise(ends)):
        inside = (rows >= start) & (rows < end)
        found.append(
            KeptRow(
                int(data_rows[number]),
                input_ids[start:end],
                rows[inside] - start,
                labels[inside],
            )
        )
    return found
