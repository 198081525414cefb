"""What a notebook shows: the Python side of each widget.

A widget `kdflow_lab/widgets/<name>.py` with JavaScript of its own has it in `/widgets/<name>.js`,
an ES module as anywidget wants it, with no build step. What several of them share lies in modules
of its own (`tokens.js`); `esm` puts those into the text that a page loads.
"""

from __future__ import annotations

import re
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


_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class)\b)", re.MULTILINE)


def esm(name: str) -> str:
    """Read the ES module of the widget `name`, with the modules beside it that it imports put in.

    A page gets a widget's module as one text and could not find others beside it. Such an import
    has the form `import { a, b } from "./other.js";` and names what `other.js` exports by
    `export function`, `export const` and the like; all modules share one scope.

    Raises:
        KDFlowLabError: A module is neither in the package nor in a checkout around it.
    """
    inside: dict[str, str] = {}

    def take(module: str) -> str:
        text = esm_path(module).read_text(encoding="utf-8")
        for other in _IMPORT.findall(text):
            if other not in inside:
                inside[other] = ""  # before it is read: two that import each other end
                inside[other] = _EXPORT.sub("", take(other))
        return _IMPORT.sub("", text)

    own = take(name)
    return "".join([*inside.values(), own])
