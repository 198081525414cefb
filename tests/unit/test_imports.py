"""The shape of the package: imports go down only, importing is cheap, nothing names a machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdflow_lab

PACKAGE = Path(kdflow_lab.__file__).parent
ROOT = Path(__file__).parents[2]

LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(layer.split())
    for layer in (
        "errors",
        "strict",
        "datasource",
        "config metrics memory units attention processes jsonl jobs options bars settings beats "
        "leftovers",
        "rundir runtime usage extras",
        "checkpoints losses align zoo transport progress commandline expand reaper client",
        "data algorithms hub load",
        "answer_metrics",
        "registration",
        "cache",
        "teacher student launch",
        "rollout lessons",
        "evaluate step control guards",
        "on_policy mean_teacher streaming",
        "prepare",
        "prepare_stream",
        "plan",
        "doctor",
        "keeper capture",
        "training",
        "worker",
        "roles cluster",
        "engine_looks",
        "engines",
        "runqueue",
        "supervisor runlist",
        "run",
        "widgets status",
        "looks sweep",
        "lab",
        "session",
        "command_calls",
        "commands",
        "completion",
        "magics cli",
    )
)
"""From the bottom up. A module may import what lies in a lower layer, and its own package."""

LAZY_UPWARD = {
    ("align", "widgets"): "an alignment that is shown draws itself; training only computes it",
    ("evaluate", "widgets"): "a sandbox that is shown draws itself; engines only compute it",
    ("run", "widgets"): "Run.plot() draws; a run without a picture needs no widget",
    ("run", "lab"): "Run.resume() finds or makes a lab; a run that is only read needs none",
}
"""Imports that look up, each inside a function, and why."""

HEAVY = ("torch", "transformers", "plotly", "ipywidgets", "sglang", "datasets")


def _component(path: Path) -> str:
    """Name the top-level module or subpackage that a file belongs to; the package's own: ''."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield what a file imports of ours: the component, the line, whether inside a function.

    Imports for the type checker alone are left out: they do not happen.
    """
    module = ["kdflow_lab", *path.relative_to(PACKAGE).with_suffix("").parts]

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)
            return
        for name in names:
            parts = name.split(".")
            if parts[0] == "kdflow_lab" and len(parts) > 1:
                yield parts[1], node.lineno, in_function

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def _layer(component: str) -> int:
    for number, layer in enumerate(LAYERS):
        if component in layer:
            return number
    raise AssertionError(f"kdflow_lab.{component} is in no layer: put it into LAYERS")


def test_imports_go_down_only() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        importer = _component(path)
        if not importer:
            continue  # the public names of kdflow_lab/__init__.py: held by the next test
        for imported, line, in_function in _imports(path):
            if imported in (importer, "__version__"):
                continue
            lazy = in_function and (importer, imported) in LAZY_UPWARD
            if _layer(imported) >= _layer(importer) and not lazy:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {imported}")
    assert not wrong, "imports that do not go down:\n" + "\n".join(wrong)


def test_every_module_has_a_layer_and_every_lazy_import_is_used() -> None:
    files = list(PACKAGE.rglob("*.py"))
    for component in {_component(path) for path in files} - {""}:
        _layer(component)
    used = {(_component(path), name) for path in files for name, _, _ in _imports(path)}
    assert not set(LAZY_UPWARD) - used


def test_package_root_imports_nothing_eagerly() -> None:
    eager = [name for name, _, lazy in _imports(PACKAGE / "__init__.py") if not lazy]
    assert set(eager) <= {"errors"}


def _run(code: str) -> tuple[str, float]:
    """Run code in a fresh interpreter; return what it printed and the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.perf_counter() - start


@pytest.mark.parametrize("module", ["kdflow_lab", "kdflow_lab.magics", "kdflow_lab.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    loaded, _ = _run(f"import sys, {module}; print(*sys.modules)")
    heavy = sorted(set(HEAVY) & set(loaded.split()))
    assert heavy == []
    best = min(_run(f"import {module}")[1] for _ in range(5))
    bare = min(_run("pass")[1] for _ in range(5))
    print(f"import {module}: {best - bare:.3f} s over a bare interpreter")  # shown by pytest -rP


def test_no_file_names_a_place_on_one_machine() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # written so that this file does not match itself
    place = re.compile(r"(?<![\w./~>}\])-])/(?:" + "work|root|opt" + r")(?:/|\b(?![\w-]))")
    library = "." + "library"
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights, pictures
        for number, line in enumerate(text.splitlines(), 1):
            if place.search(line) or library in line:
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not wrong, "files name a place on one machine:\n" + "\n".join(wrong)
