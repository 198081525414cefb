"""Ends a lab's processes when its kernel is gone, however it went.

Run as `python -I -S reaper.py FOLDER PID…` with a pipe as standard input. The pipe's other end
lives in the kernel only, so it reads as closed when the lab was closed or when the kernel died,
kill -9 included. Then everything that is still alive gets SIGTERM, two seconds, and SIGKILL, and
the lab's runtime folder is removed. Processes are held by pidfd: a reused process id is never
signalled.

The place of the supervisor: it will start the cluster instead of watching it from beside.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys

GRACE_S = 2.0


def main(folder: str, pids: list[int]) -> None:
    """Wait for the end of standard input, then end `pids` and remove `folder`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    living: dict[int, int] = {}
    for pid in pids:
        try:
            living[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    while os.read(0, 4096):
        pass
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pidfd in living.values():
            try:
                signal.pidfd_send_signal(pidfd, sign)
            except ProcessLookupError:
                continue
        _wait(list(living.values()), GRACE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _wait(pidfds: list[int], seconds: float) -> None:
    """Return as soon as all processes have ended, after `seconds` at the latest."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting = set(pidfds)
    while waiting:
        ended = poll.poll(seconds * 1000)
        if not ended:
            return
        for pidfd, _ in ended:
            poll.unregister(pidfd)
            waiting.discard(pidfd)


if __name__ == "__main__":
    main(sys.argv[1], [int(pid) for pid in sys.argv[2:]])
