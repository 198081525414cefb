"""A packed micro-batch is run in pieces, and nobody can tell."""

from __future__ import annotations

import pytest
import torch

from kdflow_lab import zoo
from kdflow_lab.teacher import transformers
from kdflow_lab.teacher.transformers import TransformersTeacher, pieces


@pytest.fixture(scope="module")
def teacher() -> TransformersTeacher:
    return TransformersTeacher(str(zoo.path("zoo/student")))


def test_pieces_are_whole_rows_of_at_most_so_many_tokens() -> None:
    assert list(pieces([0, 3, 5, 9, 20, 21], 6)) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert list(pieces([0, 3, 5, 9], 9)) == [(0, 3)]
    assert list(pieces([0, 7], 2)) == [(0, 1)]


@pytest.mark.parametrize("order", ["sorted", "reversed"])
def test_pieces_write_the_rows_of_the_whole(
    teacher: TransformersTeacher, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    torch.manual_seed(0)
    ends = torch.tensor([0, 9, 13, 30, 34], dtype=torch.int32)
    ids = torch.randint(5, 200, (34,), dtype=torch.int32)
    # the second row has none that is wanted
    rows = torch.tensor([0, 7, 8, 13, 20, 29, 33], dtype=torch.int32)
    rows = rows if order == "sorted" else rows.flip(0)
    made = []
    for most in (512, 14):
        monkeypatch.setattr(transformers, "PIECE_TOKENS", most)
        out = torch.full((len(rows), teacher.hidden_size), torch.nan)
        teacher.hidden_states(ids, ends, rows, out)
        made.append(out)
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)
