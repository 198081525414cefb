"""Refuse files over 500 kB: all that git would commit, or those named on the command line.

Weights of the zoo are allowed, all together up to 20 MB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 500_000
MAX_ZOO_BYTES = 20_000_000


def is_zoo_weight(name: str) -> bool:
    """Tell whether a path names a checkpoint of the zoo."""
    return name.startswith("kdflow_lab/zoo/") and name.endswith(".safetensors")


def committed() -> list[str]:
    """Return the paths that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def main(names: list[str]) -> int:
    """Check `names`, or everything; print what is too large; return the exit code."""
    wrong, zoo_bytes = [], 0
    for name in names or committed():
        path = ROOT / name
        num_bytes = path.stat().st_size if path.is_file() else 0
        if is_zoo_weight(name):
            zoo_bytes += num_bytes
        elif num_bytes > MAX_BYTES:
            wrong.append(f"{name} has {num_bytes:,} bytes; at most {MAX_BYTES:,} are allowed.")
    if zoo_bytes > MAX_ZOO_BYTES:
        wrong.append(f"The zoo's weights have {zoo_bytes:,} bytes; at most {MAX_ZOO_BYTES:,}.")
    print("\n".join(wrong) or "No file is too large.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
