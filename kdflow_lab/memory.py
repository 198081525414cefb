"""Giving memory back that a finished piece of work has left behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Free what only cycles of references hold, and return free memory to the system.

    An FSDP2 model refers to itself, so that its weights and optimizer state outlive their last
    user until Python happens to look; and the C library keeps free memory for the next step
    (`engines.ENVIRONMENT`), of which there is none after a run. Other C libraries than glibc have
    nothing to trim.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
