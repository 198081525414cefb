"""A folder of cached rows: found by what was asked, refused where they are another teacher's."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.cache.identity import Identity
from kdflow_lab.cache.store import MANIFEST, Store, row_keys
from kdflow_lab.errors import CacheError

IDENTITY = Identity(
    name="teacher",
    weights="w",
    config="c",
    backend="transformers",
    dtype="float32",
    hidden_size=4,
)
KEYS = [bytes([number]) * 16 for number in range(9)]


def _store(folder: Path, **changes: object) -> Store:
    return Store(folder, dataclasses.replace(IDENTITY, **changes))  # type: ignore[arg-type]


def _rows(*counts: int) -> torch.Tensor:
    return torch.randn(sum(counts), 4)


def _found(store: Store, keys: list[bytes]) -> torch.Tensor:
    places = store.places(keys)
    assert None not in places
    return store.gather([place for place in places if place is not None])


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    hidden = _rows(2, 3, 1)
    with _store(tmp_path) as store:
        store.add(KEYS[:3], [2, 3, 1], hidden)
        a, b, c = hidden.split([2, 3, 1])
        assert torch.equal(_found(store, [KEYS[2], KEYS[0]]), torch.cat([c, a]))
        assert store.places([KEYS[5]]) == [None]
        assert store.gather([]).shape == (0, 4)
    assert torch.equal(_found(_store(tmp_path), [KEYS[1]]), b)


def test_rows_that_lie_together_are_not_copied(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.add(KEYS[:3], [2, 3, 1], _rows(2, 3, 1))
    together = _found(store, KEYS[:3])
    (place,) = store.places(KEYS[1:2])
    assert place is not None
    view = place.segment.view(place.offset, place.rows)
    assert together[2:5].data_ptr() == view.data_ptr()
    assert _found(store, KEYS[1:3]).data_ptr() == view.data_ptr()


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    one, other = _store(tmp_path), _store(tmp_path)
    one.add(KEYS[:1], [2], torch.ones(2, 4))
    other.add(KEYS[1:2], [1], torch.zeros(1, 4))
    assert torch.equal(_found(one, KEYS[1:2]), torch.zeros(1, 4))
    assert torch.equal(_found(other, KEYS[:2]), torch.cat([torch.ones(2, 4), torch.zeros(1, 4)]))
    assert other.add(KEYS[:1], [2], torch.ones(2, 4)) == 0  # it is there
    assert len(_store(tmp_path)) == 2


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert store.add([KEYS[0], KEYS[0]], [1, 1], _rows(1, 1)) == 16
    assert store.add([KEYS[0], KEYS[1]], [1, 2], _rows(1, 2)) == 32
    assert store.num_bytes == 48


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", "others"),
        ("config", "another"),
        ("backend", "sglang"),
        ("dtype", "bfloat16"),
        ("hidden_size", 8),
        ("engine", '{"quantization": "fp8"}'),
    ],
)
def test_another_teachers_folder_is_refused_with_what_differs(
    tmp_path: Path, field: str, value: object
) -> None:
    with _store(tmp_path) as store:
        store.add(KEYS[:1], [2], _rows(2))
    with pytest.raises(CacheError, match=rf"another teacher.*{field} is .*cache_dir"):
        _store(tmp_path, **{field: value})
    assert len(_store(tmp_path)) == 1  # nothing was lost
    assert IDENTITY.folder != dataclasses.replace(IDENTITY, **{field: value}).folder


def test_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    _store(tmp_path)
    assert len(_store(tmp_path, name="moved")) == 0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 99}'])
def test_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str) -> None:
    _store(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CacheError, match=r"[Rr]emove the folder"):
        _store(tmp_path)


def test_rows_without_a_manifest_are_refused(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        store.add(KEYS[:1], [2], _rows(2))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(CacheError, match="whose they are is not known"):
        _store(tmp_path)


def test_torn_segment_is_left_out_and_said_and_its_rows_are_written_again(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        store.add(KEYS[:2], [2, 2], _rows(2, 2))
    with _store(tmp_path) as store:
        store.add(KEYS[2:3], [1], torch.ones(1, 4))
    torn = max(tmp_path.glob("*.rows"), key=lambda file: file.stat().st_size)
    os.truncate(torn, 40)
    said: list[str] = []
    store = Store(tmp_path, IDENTITY, on_refused=said.append)
    store.refresh()
    assert len(said) == 1 and torn.name in said[0] and store.refused == said
    assert store.places(KEYS[:2]) == [None, None]
    assert torch.equal(_found(store, KEYS[2:3]), torch.ones(1, 4))
    again = _rows(2, 2)
    assert store.add(KEYS[:2], [2, 2], again) == again.nbytes
    assert torch.equal(_found(store, KEYS[:2]), again)


def test_damaged_row_is_asked_for_again(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        store.add(KEYS[:2], [2, 2], torch.ones(4, 4))
    (file,) = tmp_path.glob("*.rows")
    with file.open("r+b") as opened:
        opened.write(b"\x7f")
    said: list[str] = []
    store = Store(tmp_path, IDENTITY, on_refused=said.append)
    first, second = store.places(KEYS[:2])
    assert first is None and second is not None
    assert "damaged" in said[0]


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot hold hidden states.*cache_dir"):
        _store(tmp_path / "file" / "below")


def test_folder_is_this_users_alone(tmp_path: Path) -> None:
    _store(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert json.loads((tmp_path / "made" / MANIFEST).read_text())["weights"] == "w"


_ROWS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(st.lists(st.tuples(_ROWS, st.integers(0, 2**6 - 1)), min_size=1, max_size=5))
def test_keys_depend_on_a_row_alone(rows: list[tuple[list[int], int]]) -> None:
    """Not on what it is packed with; and two rows share one only if they ask the same."""
    wanted = [[at for at in range(len(ids)) if mask >> at & 1] for ids, mask in rows]
    ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    together, _ = row_keys(
        np.concatenate([ids for ids, _ in rows]).astype(np.int64),
        ends,
        np.concatenate([np.add(one, end) for one, end in zip(wanted, ends, strict=False)]),
    )
    for (ids, _), one, key in zip(rows, wanted, together, strict=True):
        (alone,), _ = row_keys(np.array(ids), np.array([0, len(ids)]), np.array(one, np.int64))
        assert alone == key
    asked = [(tuple(ids), tuple(one)) for (ids, _), one in zip(rows, wanted, strict=True)]
    assert len(set(together)) == len(set(asked))
