"""`make bench`: run every benchmark; the last line of each is one JSON object.

Names on the command line (`ring`, `overlap`) narrow it. Exit code 1 when a benchmark fails or ends
with anything but a JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(script: Path) -> bool:
    """Run one benchmark, its output shown as it comes; tell whether it ended as it must."""
    print(f"== {script.name}", flush=True)
    start, last = time.monotonic(), ""
    with subprocess.Popen(
        [sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        print(f"== {script.name} failed with exit code {process.returncode}")
        return False
    try:
        ended_well = isinstance(json.loads(last), dict)
    except ValueError:
        ended_well = False
    if not ended_well:
        print(f"== {script.name} did not end with a JSON object")
    else:
        print(f"== {script.name} took {time.monotonic() - start:.0f} s\n")
    return ended_well


def main(names: list[str]) -> int:
    """Run the benchmarks called `names`, or all."""
    scripts = [
        path for path in sorted((ROOT / "benchmarks").glob("*.py")) if not path.name.startswith("_")
    ]
    unknown = set(names) - {path.stem for path in scripts}
    if unknown:
        known = ", ".join(path.stem for path in scripts)
        print(f"Unknown benchmark: {', '.join(sorted(unknown))}. There are: {known}.")
        return 1
    results = [run(path) for path in scripts if not names or path.stem in names]
    if not results:
        print("There are no benchmarks.")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
