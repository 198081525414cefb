"""The text that a page loads holds the modules that a widget imports, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdflow_lab import widgets
from kdflow_lab.errors import KDFlowLabError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(widgets, "ESM_FOLDERS", (tmp_path,))
    return tmp_path


def test_imported_modules_are_put_in_once_and_first(folder: Path) -> None:
    (folder / "a.js").write_text("export const A = 1;\nconst inner = A;\n")
    (folder / "b.js").write_text(
        'import { A } from "./a.js";\nexport function b() {\n  return A;\n}\n'
    )
    (folder / "w.js").write_text(
        'import { A } from "./a.js";\nimport {\n  b,\n} from "./b.js";\nexport default { A, b };\n'
    )
    assert widgets.esm("w") == (
        "const A = 1;\nconst inner = A;\nfunction b() {\n  return A;\n}\nexport default { A, b };\n"
    )


def test_missing_module_is_named(folder: Path) -> None:
    (folder / "w.js").write_text('import { A } from "./gone.js";\n')
    with pytest.raises(KDFlowLabError, match="gone"):
        widgets.esm("w")


def test_no_import_is_left_in_any_widget() -> None:
    for path in widgets.esm_path("status").parent.glob("*.js"):
        text = widgets.esm(path.stem)
        assert "import {" not in text
        assert text.count("export default") <= 1
