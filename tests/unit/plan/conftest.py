"""What the tests of the plan share: a lab's options, and one basis of the zoo, read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.plan.make import Basis, read_basis


@pytest.fixture(scope="session")
def lab_config(tmp_path_factory: pytest.TempPathFactory) -> LabConfig:
    """A lab of the zoo's models on the CPU."""
    folder = tmp_path_factory.mktemp("plans")
    return LabConfig(
        teacher="zoo/teacher", student="zoo/student", device="cpu", threads=1, dir=str(folder)
    )


@pytest.fixture(scope="session")
def basis(lab_config: LabConfig) -> Basis:
    """A run with all defaults, on 300 rows."""
    return read_basis(lab_config, DistillConfig(rows=300, steps=20))


@pytest.fixture
def folder(lab_config: LabConfig) -> Path:
    """Where its runs are."""
    return Path(lab_config.dir)
