"""Whose rows they are: content counts, names and times do not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdflow_lab.cache.identity import Identity, identity_of
from kdflow_lab.errors import CacheError
from kdflow_lab.jobs import TeacherInfo


def _folder(path: Path, *, value: float = 1.0, layers: int = 2) -> Path:
    path.mkdir()
    save_file({"a": torch.full((4,), value)}, path / "model.safetensors")
    config = {"num_hidden_layers": layers, "_name_or_path": str(path)}
    (path / "config.json").write_text(json.dumps(config))
    return path


def _identity(folder: Path, memo: Path, **lab: Any) -> Identity:
    teacher = TeacherInfo(
        path=str(folder),
        backend="transformers",
        why="",
        hidden_size=4,
        dtype="float32",
        pid=1,
        versions={},
    )
    return identity_of(teacher, memo, lab=lab)


def test_a_copy_is_the_same_teacher(tmp_path: Path) -> None:
    first = _identity(_folder(tmp_path / "a"), tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "copy" / "a")
    assert _identity(tmp_path / "copy" / "a", tmp_path) == first


def test_weights_config_and_what_changes_the_engine_count(tmp_path: Path) -> None:
    made = [
        _identity(_folder(tmp_path / "a"), tmp_path),
        _identity(_folder(tmp_path / "b", value=2.0), tmp_path),
        _identity(_folder(tmp_path / "c", layers=3), tmp_path),
        _identity(tmp_path / "a", tmp_path, quantization="fp8"),
        _identity(tmp_path / "a", tmp_path, engine_args={"kv_cache_dtype": "fp8_e5m2"}),
    ]
    assert len({one.folder.partition("-")[2] for one in made}) == 5
    assert _identity(tmp_path / "a", tmp_path, students=2, engine_args={}) == made[0]


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    folder, memo = _folder(tmp_path / "a"), tmp_path / "memo"
    before = _identity(folder, memo)
    remembered = (memo / "weights.json").read_text()
    assert _identity(folder, memo) == before
    assert (memo / "weights.json").read_text() == remembered
    save_file({"a": torch.zeros(4)}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert _identity(folder, memo).weights != before.weights


def test_torn_memo_costs_a_reading_only(tmp_path: Path) -> None:
    folder, memo = _folder(tmp_path / "a"), tmp_path / "memo"
    before = _identity(folder, memo)
    (memo / "weights.json").write_text("{")
    assert _identity(folder, memo) == before


def test_missing_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot be read"):
        _identity(tmp_path / "none", tmp_path)
