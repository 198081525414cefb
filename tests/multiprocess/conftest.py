"""Labs of real engines, shared by the tests: bringing one up takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kdflow_lab as kd


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A zoo lab with two students."""
    folder = tmp_path_factory.mktemp("runs")
    with kd.Lab("zoo/teacher", "zoo/student", students=2, threads=1, dir=str(folder)) as lab:
        yield lab


@pytest.fixture(scope="session")
def lab_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A zoo lab with one student."""
    folder = tmp_path_factory.mktemp("runs-of-one")
    with kd.Lab("zoo/teacher", "zoo/student", threads=1, dir=str(folder)) as lab:
        yield lab
