"""Where a lab's processes meet and write: shared memory, sockets, folders, disk, cores."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab import runtime
from kdflow_lab.doctor.findings import Finding
from kdflow_lab.errors import ClusterError
from kdflow_lab.units import size

if TYPE_CHECKING:
    from kdflow_lab.config import LabConfig

MIB = 2**20
SHM = Path("/dev/shm")
SHM_BYTES = 256 * MIB
"""What SGLang wants there for each of its ranks, generously."""
SHM_LEAST = 50 * MIB
UNIX_PATH_BYTES = 107
"""Longest path of an AF_UNIX socket on Linux (`sockaddr_un`, without its final zero)."""
LONGEST_BELOW = len("/lab-12345678/job9999-12345678/rendezvous.sock")
"""Bytes that the longest path in a lab's runtime folder adds to the root's."""


def shared_memory(backend: str, ranks: int = 1) -> Finding:
    """Look at /dev/shm.

    Args:
        backend: Of the teacher; only SGLang's processes need it. The ring lies in a memfd, which
            has no file system's limit.
        ranks: Of the teacher.
    """
    needs = backend == "sglang"
    try:
        status = os.statvfs(SHM)
    except OSError:
        return Finding(str(SHM), "not there", not needs, "SGLang needs it; mount a tmpfs there")
    free = status.f_bavail * status.f_frsize
    wanted = SHM_BYTES * ranks
    text = f"{size(free)} free; "
    text += f"SGLang wants {size(wanted)}" if needs else "the transformers teacher needs none"
    enough = free > wanted
    advice = "" if enough else f"docker run --shm-size={wanted // MIB}m, or a larger tmpfs"
    return Finding(str(SHM), text, free > SHM_LEAST or not needs, advice)


def runtime_folder() -> Finding:
    """Check that the folder of the labs' sockets is this user's alone and its path short enough."""
    name = "runtime folder"
    try:
        root = runtime.root()
    except ClusterError as error:
        return Finding(name, "cannot be used", False, str(error))
    longest = len(os.fsencode(root)) + LONGEST_BELOW
    text = f"{root}, mode 0700; paths of sockets up to {longest} of {UNIX_PATH_BYTES} bytes"
    if longest > UNIX_PATH_BYTES:
        return Finding(
            name,
            text,
            False,
            "its path is too long for sockets: name a shorter one in the environment variable "
            "KDFLOW_RUNTIME",
        )
    return Finding(name, text)


def sockets() -> Finding:
    """Make the sockets that a lab needs: AF_UNIX in the runtime folder, and TCP on the loopback."""
    problems: list[str] = []
    advice: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=runtime.root()))
            unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            unix.bind(str(Path(folder) / "s"))
            unix.listen(1)
        except (OSError, ClusterError) as error:
            problems.append(f"no AF_UNIX socket: {error}")
            advice.append("name a folder on a local disk in KDFLOW_RUNTIME")
        try:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(socket.create_connection(server.getsockname(), timeout=2))
        except OSError as error:
            problems.append(f"no connection over 127.0.0.1: {error}")
            advice.append("the ranks and the cluster meet there: allow it in the firewall")
    if problems:
        return Finding("sockets", "; ".join(problems), False, "; ".join(advice))
    return Finding("sockets", "AF_UNIX and 127.0.0.1 work")


def disk(folder: Path, checkpoint_bytes: float, keep_last: int) -> Finding:
    """Compare the disk of the runs with the checkpoints of one run.

    Args:
        folder: `Lab.dir`.
        checkpoint_bytes: Of one: float32 weights and two moments.
        keep_last: How many a run keeps; one more exists while it is written.
    """
    # here, since they load torch, and the command line asks this package for its options only
    from kdflow_lab.plan.devices import free_disk
    from kdflow_lab.plan.predict import KEPT_BESIDE

    free, kept = free_disk(folder), keep_last + KEPT_BESIDE
    needed = checkpoint_bytes * kept
    text = (
        f"{size(free)} free at {folder}; {kept} checkpoints of {size(checkpoint_bytes)} take "
        f"{size(needed)}"
    )
    if needed <= free:
        return Finding("disk", text)
    advice = "free some space, put dir= on another disk, or lower keep_last"
    return Finding("disk", text, False, advice)


def cores(config: LabConfig, *, on_gpu: bool) -> Finding:
    """Compare the cores with the engines that compute at the same time."""
    have = len(os.sched_getaffinity(0))
    engines = 1 + config.students
    threads = config.threads_among(engines)
    text = f"{have} for {engines} engines of {threads} threads"
    if on_gpu:
        return Finding("cores", text)
    if threads * engines > have:
        if config.threads == "auto":
            fewer = max(1, have - 1)
            advice = f"engines wait for each other: use students={fewer} or fewer on this CPU"
        else:
            advice = "threads wait for each other: leave threads out, or lower it"
        return Finding("cores", text, config.students == 1, advice)
    if config.students > 1:
        return Finding(
            "cores", text, True, "on one CPU several students share its cores: none is faster"
        )
    return Finding("cores", text)
