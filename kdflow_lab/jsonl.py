"""Files of one JSON object a line, that several processes append to and read while they grow.

Each line is appended by one `write` call to a file opened for appending, so that lines of several
processes never mix, and what was announced is in the disk's page cache already.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from kdflow_lab.errors import RunError


class JsonlTail:
    """Reads the complete lines that were appended to a JSONL file since the last call."""

    def __init__(self, path: Path, *, position: int = 0) -> None:
        """Start at byte `position` of `path`, which need not exist yet."""
        self.path = path
        self._position = position

    def read(self) -> list[dict[str, Any]]:
        """Return the new objects; a last line without its newline waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._position += end
        objects = []
        for line in data[:end].splitlines():
            try:
                read = json.loads(line)
            except ValueError:  # torn by a machine that died; what follows is still good
                continue
            if isinstance(read, dict):
                objects.append(read)
        return objects


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one line by one write, so that concurrent writers never interleave.

    A line that a full disk or the end of a machine cut off must not spoil the next one: that one
    begins on a line of its own.
    """
    line = json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            if (written := os.write(fd, line)) < len(line):
                if os.fstat(fd).st_size == size + written:
                    os.ftruncate(fd, size)  # plain readers choke on half a line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}. What stands in it is kept. Free some "
            "space or make it writable, then resume the run."
        ) from error
