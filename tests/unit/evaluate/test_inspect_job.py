"""What an inspection keeps between calls; `tests/multiprocess/test_inspect.py` has its numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdflow_lab.evaluate import inspect_job
from kdflow_lab.evaluate.inspect_job import KEPT, Models, _kept
from kdflow_lab.jobs import StudentPlace, SubjectJob, TeacherInfo


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the models that were loaded, in order; nothing is read from them."""
    folders: list[str] = []
    monkeypatch.setattr(inspect_job, "LookedAt", lambda job: folders.append(job.model) or job)
    return folders


def _job(folder: Path, teacher: str = "teacher") -> SubjectJob:
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        (folder / "model.safetensors").write_bytes(b"weights")
    info = TeacherInfo(teacher, "transformers", "", 8, "float32", 0, {})
    place = StudentPlace(0, 1, "cpu", 1, None, "")
    return SubjectJob(place, str(folder), False, "", "test", None, 0, info)


def test_a_model_is_loaded_once_as_long_as_its_files_are_the_same(
    tmp_path: Path, loaded: list[str]
) -> None:
    models: Models = Models()
    first = _kept(_job(tmp_path / "a"), models)
    assert _kept(_job(tmp_path / "a"), models) is first
    assert len(loaded) == 1
    file = tmp_path / "a" / "model.safetensors"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1_000_000))
    assert _kept(_job(tmp_path / "a"), models) is not first
    assert _kept(_job(tmp_path / "a", teacher="another"), models) is not first
    assert len(loaded) == 3


def test_few_models_are_kept_those_last_used(tmp_path: Path, loaded: list[str]) -> None:
    models: Models = Models()
    names = [str(number) for number in range(KEPT + 1)]
    for name in names:
        _kept(_job(tmp_path / name), models)
        _kept(_job(tmp_path / names[0]), models)  # in use all the time
        assert len(models) <= KEPT
    assert [Path(one).name for one in loaded] == names
