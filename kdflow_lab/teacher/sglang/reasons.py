"""SGLang's reason for not starting, found in what its processes printed."""

from __future__ import annotations

import re
from pathlib import Path

_ERROR = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Used)): (.+)$", re.MULTILINE)
_SECOND_HAND = (
    "Initialization failed. Please see the error messages above",
    "scheduler died during initialization",
    "KeyError: '/",  # of multiprocessing's resource tracker, after the end
)
_LONGEST = 400


def reason_in(log: str) -> str:
    """Return the cause in one sentence; an empty string if nothing in the log looks like one.

    A process that fails takes others with it. Their errors come later and are of second hand, so
    the last error of the first traceback counts.

    Args:
        log: What was printed, tracebacks included.
    """
    for block in log.split("Traceback (most recent call last):")[1:]:
        found = [
            match
            for match in _ERROR.finditer(block)
            if not any(words in match[0] for words in _SECOND_HAND)
        ]
        if found:
            text = " ".join(found[-1][2].split())
            return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return ""


def tail(file: Path, most_bytes: int = 1 << 18) -> str:
    """Read the end of a log file; an empty string if there is none."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, 2) - most_bytes))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""
