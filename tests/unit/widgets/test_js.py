"""The widgets' JavaScript, tested by node itself: `tests/js/*.test.mjs`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from node import find_node

from kdflow_lab.widgets import esm, esm_path

JS = Path(__file__).parents[2] / "js"
SUITES = sorted(JS.glob("*.test.mjs"))
WIDGETS = esm_path("status").parent
"""The JavaScript that the package would load: of a checkout, or of an installed wheel."""


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_javascript(suite: Path) -> None:
    node = find_node()
    if node is None:
        pytest.skip("There is no node: `pip install 'pyright[nodejs]'` brings one.")
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", str(suite)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "KDFLOW_WIDGETS": str(WIDGETS)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout  # something was tested


def test_every_widget_with_javascript_has_a_suite() -> None:
    widgets = {path.stem for path in WIDGETS.glob("*.js")}
    assert widgets == {suite.name.removesuffix(".test.mjs") for suite in SUITES}


@pytest.mark.parametrize("name", sorted(path.stem for path in WIDGETS.glob("*.js")))
def test_the_text_that_a_page_loads_is_one_module(name: str, tmp_path: Path) -> None:
    """Modules that are put into one scope may not declare a name twice."""
    node = find_node()
    if node is None:
        pytest.skip("There is no node: `pip install 'pyright[nodejs]'` brings one.")
    file = tmp_path / f"{name}.mjs"
    file.write_text(esm(name), encoding="utf-8")
    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
