"""How long a person waits: the import, the extension, the engines, and a distil cell.

Everything in fresh processes, like a new kernel; medians of several, the first thrown away.

    import_s      import kdflow_lab, over a bare interpreter
    load_ext_s    %load_ext kdflow_lab in a fresh IPython shell, over a bare shell
    up_s          %kdflow up with the zoo, one student: engines started, teacher loaded
    distil_down_s a distil cell with the engines down: it returns while they start
    distil_up_s   a distil cell with the engines up

What bounds `up`: two processes import torch and transformers (1 and 3 s of CPU each) after the
controller, the engines and their heart beats have come up (2.4 s).
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

from _common import machine, print_result

REPEATS = 5
SHELL = """
import json, sys, tempfile, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
def timed(line):
    start = time.perf_counter()
    result = shell.run_cell(line)
    result.raise_error()
    return time.perf_counter() - start
"""
LOAD = SHELL + 'print(json.dumps({"load_ext_s": timed("%load_ext kdflow_lab")}))'
LAB = (
    SHELL
    + """
shell.run_cell("%load_ext kdflow_lab")
folder = tempfile.mkdtemp(prefix="kdflow-startup-")
shell.run_cell("import kdflow_lab as kd")
shell.run_cell(f"lab = kd.Lab('zoo/teacher', 'zoo/student', dir={folder!r})")
down = timed("run = lab.distill(rows=64, batch_size=8, steps=2)")
shell.run_cell("run.wait(); lab.close()")
up = timed("%kdflow up")
cell = timed("run = lab.distill(rows=64, batch_size=8, steps=2)")
shell.run_cell("run.wait(); lab.close()")
print()
print(json.dumps({"up_s": up, "distil_down_s": down, "distil_up_s": cell}))
"""
)
IMPORT = """
import json, time
start = time.perf_counter()
import kdflow_lab
print(json.dumps({"import_s": time.perf_counter() - start}))
"""


def run(code: str) -> dict[str, float]:
    """Run a script in a fresh interpreter; its last line is a JSON object."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure and print one JSON object."""
    figures: dict[str, float] = {}
    for code, repeats in ((IMPORT, REPEATS), (LOAD, REPEATS), (LAB, 2)):
        results = [run(code) for _ in range(repeats + 1)][1:]
        figures |= {name: median(one[name] for one in results) for name in results[0]}
    wanted = {
        "import_s": "<= 0.2",
        "load_ext_s": "<= 0.5",
        "up_s": "<= 15",
        "distil_down_s": "<= 0.5",
        "distil_up_s": "<= 0.5",
    }
    print_result({"benchmark": "startup", **figures, "wanted": wanted, "machine": machine()})


if __name__ == "__main__":
    main()
