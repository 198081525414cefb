"""The guardian of a supervisor: ends the lab's processes when the supervisor is gone.

Run as `python -m kdflow_lab.reaper FOLDER` with a pipe as standard input, whose other end lives in
the supervisor only: it reads as closed when the supervisor ended, kill -9 included. A supervisor
that ended in good order leaves nothing to do. After any other end, the runs that were active are
said to have failed, every process that carries the lab's marker is killed, and its folder removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from kdflow_lab import leftovers, processes, runtime
from kdflow_lab.rundir import fail_runs

REASON = (
    "The lab's supervisor died, and the lab was ended. run.resume(), or %kdflow resume, goes on "
    "from the last checkpoint."
)


def main(folder: Path) -> None:
    """Wait for the end of standard input, then end the lab in `folder`."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    if not folder.exists():
        return
    try:
        active = json.loads((folder / runtime.RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        active = []
    # Said before the engines are killed: the first word counts, and this one names the cause.
    fail_runs(active, REASON, lost=["supervisor"])
    processes.end(folder, spare={os.getpid()}, grace_s=0)
    leftovers.remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
