"""Finding and ending the processes of a lab, by the marker in their environment.

Every process of a lab carries `KDFLOW_LAB=<its runtime folder>`, and so does whatever it starts. A
list of process ids would miss the child of a child, and would hit strangers when ids are reused; a
process found by its marker is held by pidfd before it is signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

MARKER = "KDFLOW_LAB"
ROUNDS = 5
"""How often `end` looks again: a process may start another one while it is ended."""


def born(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; None if it is gone.

    Together with its id this names a process for good: ids are reused, moments are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 2 :].split()  # the name before it may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def marked(folder: str | Path, *, spare: Collection[int] = ()) -> dict[int, int]:
    """Find the living processes of the lab in `folder`.

    Args:
        folder: The lab's runtime folder.
        spare: Process ids to leave out.

    Returns:
        A pidfd by process id; the caller closes them.
    """
    wanted = os.fsencode(f"{MARKER}={folder}")
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spare:
            continue
        with contextlib.suppress(OSError):  # it ended, or it is another user's
            pidfd = os.pidfd_open(int(name))
            try:
                # read after it is held, so that what is read is of the process that is held
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found[int(name)], pidfd = pidfd, -1
            finally:
                if pidfd >= 0:
                    os.close(pidfd)
    return found


def end(folder: str | Path, *, spare: Collection[int] = (), grace_s: float = 1.0) -> None:
    """End every process of a lab: SIGTERM, `grace_s` seconds, SIGKILL, until none is found."""
    for attempt in range(ROUNDS):
        found = marked(folder, spare=spare)
        if not found:
            return
        gently = (signal.SIGTERM,) if attempt == 0 and grace_s else ()
        for sign in (*gently, signal.SIGKILL):
            for pidfd in found.values():
                send(pidfd, sign)
            wait(found.values(), grace_s if sign == signal.SIGTERM else 2.0)
        for pidfd in found.values():
            os.close(pidfd)


def send(pidfd: int, sign: signal.Signals) -> None:
    """Signal a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, sign)


def ended(pidfds: Iterable[int], timeout_s: float = 0.0) -> set[int]:
    """Return those of `pidfds` whose process has ended; waits `timeout_s` for the first one."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return {pidfd for pidfd, _ in poll.poll(timeout_s * 1000)}


def wait(pidfds: Iterable[int], timeout_s: float) -> None:
    """Return as soon as all processes have ended, after `timeout_s` at the latest."""
    waiting, deadline = set(pidfds), time.monotonic() + timeout_s
    while waiting:
        gone = ended(waiting, max(0.0, deadline - time.monotonic()))
        if not gone:
            return
        waiting -= gone
