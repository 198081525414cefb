"""What the `data` event says of several data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdflow_lab.config import DistillConfig
from kdflow_lab.data.several import Several
from kdflow_lab.data.table import TokenTable
from kdflow_lab.data.tokens import Report


def _read(rows: int, *, bad: int = 0) -> tuple[TokenTable, Report]:
    table = TokenTable(
        input_ids=np.zeros(3 * rows, np.int32),
        offsets=np.arange(0, 3 * rows + 1, 3),
        response_mask=np.tile(np.array([0, 1, 1], np.uint8), rows),
        row_index=np.arange(rows, dtype=np.int32),
    )
    reasons = [(f"x:{k}", "no") for k in range(bad)]
    return table, Report(rows + bad, rows, 0, 0, bad, reasons, 3 * rows, 2 * rows)


def _several(data: Any, *counts: tuple[int, int], **options: Any) -> Several:
    several = Several(DistillConfig.parse(data=data, **options))
    for rows, bad in counts:
        several.add(*_read(rows, bad=bad))
    return several


def test_rows_are_counted_through_and_shares_are_those_of_the_weights() -> None:
    several = _several({"a": 3, "b": 1}, (30, 2), (6, 0), steps=10, batch_size=8)
    table, said = several.table, several.summary()
    assert table.source is not None
    assert table.source.tolist() == [0] * 30 + [1] * 6
    assert table.row_index.tolist() == [*range(30), *range(32, 38)]
    assert (said["rows"], said["kept"], said["skipped"], said["tokens"]) == (38, 36, 2, 108)
    first, second = said["sources"]
    assert (first["data"], first["share"], first["passes"]) == ("a", 0.75, 2.0)
    assert (second["data"], second["share"], second["passes"]) == ("b", 0.25, 3.333)
    assert (second["first_row"], second["weight"], second["rows"]) == (32, 1.0, 6)


@pytest.mark.parametrize(
    ("data", "share", "passes"), [(["a", "b"], 0.8, 2), ({"a": 1, "b": 1}, 0.5, 1.25)]
)
def test_an_epoch_has_as_many_rows_as_all_have(data: Any, share: float, passes: float) -> None:
    said = _several(data, (8, 0), (2, 0), epochs=2).summary()["sources"]
    assert (said[0]["share"], said[0]["passes"]) == (share, passes)


def test_one_data_set_is_said_as_ever() -> None:
    several = _several("a", (4, 1))
    assert "sources" not in several.summary() and several.table.source is None
    on_policy = _several(["a", "b"], (4, 0), (4, 0), on_policy=True).summary()
    assert all("passes" not in one for one in on_policy["sources"])
