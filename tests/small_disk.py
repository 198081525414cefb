"""A disk that is really full: a script runs where a folder is a file system of a few kilobytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNTED = 'mount -t tmpfs -o size="$1"k none "$2" || exit 77; shift 2; exec "$@"'


def run_on_small_disk(script: str, folder: Path, *, kib: int) -> str:
    """Run a script in a mount namespace of its own, gone with it; return what it printed.

    The test is skipped where this user may not mount.

    Args:
        script: Python; `sys.argv[1]` is the folder.
        folder: Becomes the file system.
        kib: Its size.
    """
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small disk with")
    folder.mkdir(exist_ok=True)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNTED, "sh"]
    python = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(
        [*command, str(kib), str(folder), *python],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    no_namespace = done.stderr.startswith("unshare:")
    if done.returncode == 77 or no_namespace:
        pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout
