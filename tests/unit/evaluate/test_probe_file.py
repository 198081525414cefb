"""Probe files: whole or not at all, and read without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.probe_file import ids_in, read, read_file, save

ARRAYS = {
    "input_ids": np.arange(3, dtype=np.int32),
    "response": np.array([True, False, True]),
    "student_topk_logprobs": np.full((3, 2), -0.5, np.float32),
}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "probes" / "7.safetensors"
    for _ in range(2):  # the second replaces the first
        save(path, ARRAYS, step=7, k=2)
    found = read(path)
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"schema": "1", "step": "7", "temperature": "1", "k": "2"}
    assert list(path.parent.iterdir()) == [path]


def test_texts_travel_with_the_ids(tmp_path: Path) -> None:
    """Any text does: of a byte, of no character at all, of markup."""
    path = tmp_path / "7.safetensors"
    texts = {0: "\ud83d", 1: "\u202e<b>\x1b[31m", 65: "", 70_000: " word"}
    save(path, ARRAYS, step=7, k=2, texts=texts)
    found = read_file(path)
    assert (found.texts, found.step) == (texts, 7)
    save(path, ARRAYS, step=7, k=2)
    assert read_file(path).texts == {}
    listed = ARRAYS | {"teacher_topk_ids": np.array([[9, 2], [1, 0], [2, 9]], np.int32)}
    assert ids_in(listed) == [0, 1, 2, 9]


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "1.safetensors", ARRAYS, step=1, k=2)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no probes at"):
        read(tmp_path / "1.safetensors")
    (tmp_path / "2.safetensors").write_bytes(b"something")
    with pytest.raises(DataError, match="is no probe file"):
        read(tmp_path / "2.safetensors")
    save_file(ARRAYS, tmp_path / "3.safetensors", metadata={"schema": "2"})
    with pytest.raises(DataError, match="has schema '2'"):
        read(tmp_path / "3.safetensors")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    save(path, ARRAYS, step=1, k=2)
    code = (
        "import sys; from kdflow_lab.evaluate.probe_file import read; "
        f"read({str(path)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
