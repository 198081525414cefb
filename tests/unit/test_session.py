"""Names of runs: what a command works on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import write_run

from kdflow_lab.errors import RunError
from kdflow_lab.session import Session


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The session's folder, with the runs `old`, `middle` and `new`."""
    root = tmp_path / "runs"
    for age, name in ((1, "new"), (3, "old"), (2, "middle")):
        write_run(root / name)
        os.utime(root / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    monkeypatch.setenv("KDFLOW_RUNS", str(root))
    return root


def test_folder_is_that_of_the_environment_or_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Session().folder() == folder
    monkeypatch.delenv("KDFLOW_RUNS")
    assert Session().folder() == Path("kdflow_runs")


def test_names_are_listed_newest_first(folder: Path) -> None:
    assert Session().run_names() == ["new", "middle", "old"]


@pytest.mark.parametrize("name", [None, "latest"])
def test_no_name_is_the_newest_run(folder: Path, name: str | None) -> None:
    assert Session().run(name).name == "new"


def test_run_is_found_by_name_by_path_and_as_itself(folder: Path) -> None:
    session = Session()
    run = session.run("old")
    assert run.path == folder / "old"
    assert session.run(str(folder / "middle")).name == "middle"
    assert session.run(folder / "middle").name == "middle"
    assert session.run(run) is run


def test_folder_that_is_given_counts(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other" / "mine")
    assert Session().run("mine", tmp_path / "other").path == other.path
    with pytest.raises(RunError, match="There is no run 'old'"):
        Session().run("old", tmp_path / "other")


def test_unknown_run_offers_the_nearest_and_says_what_there_is(folder: Path) -> None:
    with pytest.raises(RunError) as caught:
        Session().run("midle")
    assert str(caught.value) == (
        f"There is no run 'midle' in {folder}. Did you mean 'middle'? It holds new, middle, old."
    )


def test_empty_folder_says_how_to_start_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no run in .*\. Start one with distill"):
        Session().run(None, tmp_path)
