"""Numbers as people write them."""

from __future__ import annotations


def size(count: float) -> str:
    """Write a number of bytes in powers of 1000, such as `310 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            digits = 0 if name == "MB" and count >= 10 * unit else 2 if name == "GB" else 1
            return f"{count / unit:.{digits}f} {name}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Write seconds as people do, such as `12 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
