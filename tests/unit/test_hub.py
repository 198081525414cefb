"""From a model's name to a folder; what cannot be one is said in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdflow_lab import zoo
from kdflow_lab.errors import ConfigError, ModelError
from kdflow_lab.hub import pin_name, resolve_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "my-student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_model_of_the_zoo_is_its_folder() -> None:
    assert resolve_model("zoo/teacher") == str(zoo.path("zoo/teacher"))
    with pytest.raises(ConfigError, match="Did you mean 'zoo/student'"):
        resolve_model("zoo/studen")


def test_folder_is_made_absolute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    for name in (str(model), "my-student", "./my-student", "~/my-student"):
        assert resolve_model(name) == str(model)


def test_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        resolve_model(str(tmp_path))


def test_misspelt_folder_offers_its_sibling(model: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no model folder '.*'\. Did you mean 'my-stud"):
        resolve_model(str(model.parent / "my-studen"))


def test_file_is_not_offered_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ModelError) as caught:
        resolve_model(str(tmp_path / "notes"))
    assert "Did you mean" not in str(caught.value)


def test_missing_parent_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path}/no does not exist either"):
        resolve_model(str(tmp_path / "no" / "model"))


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "~/missing"])
def test_path_is_never_looked_up_in_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError, match="There is no model folder"):
        resolve_model(name)


def test_pinned_name_holds_in_any_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert pin_name("my-student") == str(model)
    assert pin_name("zoo/teacher") == "zoo/teacher"
    assert pin_name("org/on-the-hub") == "org/on-the-hub"  # may exist: no download to find out


def test_name_that_is_surely_no_model_cannot_be_pinned(model: Path) -> None:
    with pytest.raises(ModelError):
        pin_name(str(model.parent))
    with pytest.raises(ModelError):
        pin_name(str(model.parent / "missing"))
    with pytest.raises(ConfigError):
        pin_name("zoo/nothing")


def test_hub_that_is_offline_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "from kdflow_lab.errors import ModelError\n"
        "from kdflow_lab.hub import resolve_model\n"
        "try:\n    resolve_model('org/model')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "There is no folder 'org/model', and the hub cannot give a model of that"
    )
    assert line.endswith(
        "Pass a local folder, a hub id, or a model of the zoo such as 'zoo/teacher'."
    )
    assert "Traceback" not in done.stderr
