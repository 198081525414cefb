"""What a notebook shows: the Python side of each widget.

A widget `kdflow_lab/widgets/<name>.py` with JavaScript of its own has it in `/widgets/<name>.js`,
an ES module as anywidget wants it, with no build step.
"""

from __future__ import annotations

from pathlib import Path

from kdflow_lab.errors import KDFlowLabError

_PACKAGE = Path(__file__).parent.parent
ESM_FOLDERS = (_PACKAGE / "_static", _PACKAGE.parent / "widgets")
"""Where ES modules lie: in a wheel, and in a checkout (an editable install)."""


def esm_path(name: str) -> Path:
    """Find the ES module of the widget `name`.

    Raises:
        KDFlowLabError: It is neither in the package nor in a checkout around it.
    """
    for folder in ESM_FOLDERS:
        if (path := folder / f"{name}.js").is_file():
            return path
    raise KDFlowLabError(
        f"The JavaScript of the widget {name!r} is missing: no {name}.js in "
        f"{' or '.join(str(folder) for folder in ESM_FOLDERS)}. The installation is damaged: "
        "install kdflow-lab again."
    )
