"""A folder that sockets can be made in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of this user's alone and with a short path, which pytest's own `tmp_path` may not have."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as name:
        yield Path(name)


@pytest.fixture
def socket_path(folder: Path) -> str:
    return str(folder / "teacher.sock")
