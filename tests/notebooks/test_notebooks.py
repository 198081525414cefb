"""Every notebook runs from top to bottom in a fresh kernel and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from notebook_runner import NotebookRunner, code_cells

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("**/[!.]*.ipynb"))
MAX_BYTES = 1_000_000
STORIES = ("01_quickstart", "02_losses", "03_lenses", "04_on_policy", "05_cross_tokenizer")


def _name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_there_are_notebooks() -> None:
    names = {f"{name}.ipynb" for name in STORIES}
    assert {FOLDER / name for name in names} <= set(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_notebook_is_committed_clean(path: Path) -> None:
    """No outputs, no counters, no widget state, ids on the cells: diffs show what was written."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"cell {cell.id} has outputs: run nbstripout {path.name}"
        assert cell.get("execution_count") is None, f"cell {cell.id}: run nbstripout {path.name}"
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.notebook
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    runner = NotebookRunner(
        path,
        env={"KDFLOW_OUT": str(tmp_path / "out"), "KDFLOW_RUNS": str(tmp_path / "kdflow_runs")},
    )
    (tmp_path / "out").mkdir()
    before = sorted(entry.name for entry in path.parent.iterdir())

    notebook = runner.run()  # an error in a cell, an unknown magic or a dead kernel raises

    assert runner.leftovers == [], "processes outlived the kernel"
    after = [entry.name for entry in path.parent.iterdir() if entry.name != ".ipynb_checkpoints"]
    assert sorted(after) == before, "the notebook wrote beside itself, not under KDFLOW_OUT"
    for index, cell in code_cells(notebook):
        outputs = notebook.cells[index].get("outputs", [])
        errors = [output for output in outputs if output.output_type == "error"]
        assert not errors, f"{cell.title}: {errors}"
    assert "widgets" not in notebook.metadata
    size = len(json.dumps(notebook))
    assert size < MAX_BYTES, f"executed, the notebook takes {size:,} bytes"
