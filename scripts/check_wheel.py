"""Build the wheel and run the unit tests that need its files against it, outside the tree.

What the checkout hides shows up here: JavaScript or weights that are missing from the wheel, data
that is found only beside the sources, a console script that does not start. The wheel is built
from the sdist, so that one is checked too. Dependencies come from the environment of this Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIETLY = str(ROOT / "scripts" / "quietly")
TESTS = [
    *(f"tests/unit/{name}" for name in ("cache", "data", "doctor", "plan", "teacher")),
    *(f"tests/unit/{name}" for name in ("transport", "widgets", "zoo")),
    *(f"tests/unit/test_{name}.py" for name in ("cli", "magics", "run", "rundir", "hub", "sweep")),
]

SGLANG = "kdflow_lab/teacher/sglang"
STANDINS = ("sgl_kernel", "torchvision", "triton", "xgrammar")
NEEDED = (
    f"{SGLANG}/requirements-cpu.txt",
    *(f"{SGLANG}/standins/{name}/{name}/__init__.py" for name in STANDINS),
)
"""What no test outside the tree would miss: only a host with SGLang reads it."""


def expected_files() -> set[str]:
    """Return the paths that the wheel must hold: the package, and the widgets under _static."""
    package = ROOT / "kdflow_lab"
    found = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    widgets = ROOT / "widgets"
    return found | {
        f"kdflow_lab/_static/{path.relative_to(widgets).as_posix()}"
        for path in widgets.rglob("*")
        if path.is_file()
    }


def build(folder: Path) -> Path:
    """Build sdist and wheel into `folder`; return the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([QUIETLY, "Building the wheel", *command], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_outside(folder: Path, site: Path, command: list[str]) -> None:
    """Run a command in `folder` with the unpacked wheel in front of everything installed."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, check=True, cwd=folder, env=environment)


def main(tests: list[str]) -> int:
    """Check the wheel; `tests` replaces the tests that run."""
    with tempfile.TemporaryDirectory(prefix="kdflow-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        with zipfile.ZipFile(wheel) as archive:
            missing = expected_files().union(NEEDED) - set(archive.namelist())
        if missing:
            print("The wheel lacks:", *sorted(missing), sep="\n  ")
            return 1
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, complete")
        site, outside = folder / "site", folder / "outside"
        install = ["--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "install", *install], check=True)
        for part in ("tests", "scripts"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, outside / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", outside)
        where = f"import kdflow_lab as k, sys; sys.exit(not k.__file__.startswith({str(site)!r}))"
        run_outside(outside, site, [sys.executable, "-c", where])
        kdflow = str(site / "bin" / "kdflow")
        run_outside(outside, site, [QUIETLY, "Starting kdflow", kdflow, "help"])
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        run_outside(outside, site, [*pytest, *(tests or TESTS)])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as failed:
        # the command has said why itself
        print(f"The wheel is not good: a step failed with exit code {failed.returncode}.")
        sys.exit(1)
