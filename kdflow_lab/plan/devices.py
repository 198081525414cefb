"""What is free for a run: host memory, each GPU's, and the disk of the runs."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kdflow_lab import processes

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """What a plan needs of one device, and what is free there.

    Attributes:
        device: `host`, `cuda:0` …, or `disk`.
        needed: Bytes.
        free: Bytes; None if it cannot be known here.
    """

    device: str
    needed: float
    free: float | None

    @property
    def fits(self) -> bool:
        """Whether it fits; what is not known counts as fitting, and the plan says so."""
        return self.free is None or self.needed <= self.free


def free_host(lab_folder: Path | None = None) -> float:
    """Bytes of host memory that are free, within the container's limit.

    Args:
        lab_folder: Runtime folder of a living lab, whose processes' memory counts as free: they are
            the ones that are planned.
    """
    import psutil

    memory = psutil.virtual_memory()
    free = float(memory.available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        # files that were read count as used, and give way
        cached = dict(
            line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()
        ).get("inactive_file", "0")
        free = min(free, max(0.0, float(limit - used + int(cached))))
    if lab_folder is not None:
        for pid, pidfd in processes.marked(lab_folder).items():
            os.close(pidfd)
            with contextlib.suppress(psutil.Error):
                free += psutil.Process(pid).memory_info().rss
    return min(free, float(memory.total))


def free_gpu(number: int) -> float | None:
    """Bytes that are free on a GPU; None where torch sees none of that number."""
    import torch

    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        return None
    return float(torch.cuda.mem_get_info(number)[0])


def free_disk(folder: Path) -> float:
    """Bytes that are free where a folder is, or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)
