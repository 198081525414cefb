"""Run Binder's steps in a fresh environment, execute the quickstart there, weigh its memory.

conda does not run here: a virtual environment with the torch of constraints.txt stands in for
environment.yml. From there on it is Binder's own way: postBuild in a copy of the repository, then
the kernel under binder/start, beside a JupyterLab server. Exit code 1 when a step fails or the
peak is over the limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import process_watch
from check_sizes import ROOT, committed
from notebook_runner import CellFailed, NotebookRunner

LIMIT_BYTES = 2_000_000_000
QUIETLY = str(ROOT / "scripts" / "quietly")


def copy_repository(folder: Path) -> None:
    """Copy what git would commit, so that nothing else on this machine can help."""
    for name in committed():
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def build(folder: Path, prefix: Path) -> None:
    """Make the environment `prefix` for the repository's copy in `folder`."""
    conda = (folder / "binder" / "environment.yml").read_text()
    version = re.search(r"python=([\d.]+)", conda)
    running = ".".join(map(str, sys.version_info[:2]))
    if version is None or version[1] != running:
        print(f"Note: environment.yml asks for another Python than the {running} used here.")
    python = str(prefix / "bin" / "python")
    constraints = (folder / "constraints.txt").read_text()
    torch = re.findall(r"^torch==\S+", constraints, re.MULTILINE)[0]
    environment = {
        **os.environ,
        "NB_PYTHON_PREFIX": str(prefix),
        "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    for message, command in (
        ("Making a fresh environment", [sys.executable, "-m", "venv", str(prefix)]),
        (f"Installing {torch} in conda's place", [python, "-m", "pip", "install", "-q", torch]),
        ("Running binder/postBuild", [str(folder / "binder" / "postBuild")]),
    ):
        subprocess.run([QUIETLY, message, *command], check=True, cwd=folder, env=environment)


def started_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process under binder/start."""
    command = [str(folder / "binder" / "start"), "env", "-0"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    return dict(line.split("=", 1) for line in listed.split("\0") if line)


def execute(folder: Path, python: str, out: Path) -> int:
    """Execute the quickstart and print its peak memory; return the exit code."""
    environment = started_environment(folder)
    server_mark = uuid.uuid4().hex
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
            *("--allow-root", f"--ServerApp.root_dir={folder}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, process_watch.MARK: server_mark},
    )
    out.mkdir()
    runner = NotebookRunner(
        folder / "notebooks" / "01_quickstart.ipynb",
        env={**environment, "KDFLOW_OUT": str(out), "KDFLOW_RUNS": str(out / "kdflow_runs")},
        python=python,
        on_cell=lambda cell: print(f"[{cell.number}/{cell.count}] {cell.title}", flush=True),
    )
    watch = process_watch.MemoryWatch(runner.mark, server_mark)
    start = time.monotonic()
    watch.start()
    try:
        runner.run()
    except CellFailed as failed:
        print(f"The quickstart failed in {failed}")
        return 1
    finally:
        peak_bytes = watch.stop()
        server.terminate()
        server.wait(20)
        process_watch.end(server_mark, grace_s=5)
    print(f"The quickstart took {time.monotonic() - start:.0f} s; at its peak there were:")
    print(*watch.peak_processes, sep="\n")
    print(
        f"Peak memory, PSS of all processes: {peak_bytes / 1e6:,.0f} MB of "
        f"{LIMIT_BYTES / 1e6:,.0f} MB allowed, from {watch.num_samples} samples"
    )
    return int(peak_bytes > LIMIT_BYTES)


def main() -> int:
    """Run the check; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--here", action="store_true", help="measure in this environment, without building one"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdflow-binder-") as name:
        folder, prefix = Path(name) / "repository", Path(name) / "environment"
        copy_repository(folder)
        python = sys.executable
        if not args.here:
            try:
                build(folder, prefix)
            except subprocess.CalledProcessError:
                return 1  # quietly has shown why
            python = str(prefix / "bin" / "python")
        return execute(folder, python, Path(name) / "out")


if __name__ == "__main__":
    sys.exit(main())
