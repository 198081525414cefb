"""One append-only pair of files: hidden rows, and an index that says where each data row's lie.

    <name>.rows    hidden rows, dtype[T, H] of one data row behind those of the other
    <name>.index   32 bytes a data row, little-endian: 16 its key, Q offset in bytes, I hidden rows,
                   I CRC-32 of their bytes

A segment has one writer, the process that made it. Rows are written before the index entry that
names them, so whatever stands in the index is whole, also behind a kill -9. Behind a power failure
the sizes, or the checksum, which is looked at when a row is first used, say that it is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.errors import CacheError

ENTRY = np.dtype([("key", "V16"), ("offset", "<u8"), ("rows", "<u4"), ("crc", "<u4")])
ROWS, INDEX = ".rows", ".index"


class Place(NamedTuple):
    """Where the hidden rows of a data row lie.

    Attributes:
        segment: In this segment.
        offset: At this byte.
        rows: So many.
        crc: CRC-32 of their bytes.
    """

    segment: Segment
    offset: int
    rows: int
    crc: int


class Segment:
    """A pair of files that is read, perhaps while its writer goes on."""

    def __init__(self, rows_file: Path, *, dtype: torch.dtype, hidden_size: int) -> None:
        """Name the files; nothing is read before `news`."""
        self.rows_file = rows_file
        self.index_file = rows_file.with_suffix(INDEX)
        self.dtype, self.hidden_size = dtype, hidden_size
        self._read = 0  # entries of the index
        self._mapped = torch.empty(0, dtype=dtype)
        self._checked: set[int] = set()  # offsets

    @property
    def row_bytes(self) -> int:
        """Of a hidden row."""
        return self.hidden_size * self.dtype.itemsize

    def news(self) -> list[tuple[bytes, Place]]:
        """Return key and place of what was added since the last call.

        Raises:
            CacheError: The segment is torn: its rows end before its index says.
        """
        entries = self._new_entries()
        if not len(entries):
            return []
        ends = entries["offset"] + entries["rows"].astype(np.uint64) * self.row_bytes
        there, needed = _size(self.rows_file), int(ends.max())
        if there < needed:
            raise CacheError(
                f"{self.rows_file} is torn: it has {there:,} bytes, its index needs {needed:,}. "
                f"Remove it and {self.index_file.name}; what was in them is asked for again."
            )
        self._read += len(entries)
        columns = (entries[name].tolist() for name in ("offset", "rows", "crc"))
        return [
            (key.tobytes(), Place(self, *place))
            for key, *place in zip(entries["key"], *columns, strict=True)
        ]

    def _new_entries(self) -> np.ndarray:
        """The whole entries behind those that were read; half of one is a writer's at work."""
        if _size(self.index_file) < (self._read + 1) * ENTRY.itemsize:
            return np.empty(0, ENTRY)
        with self.index_file.open("rb") as file:
            file.seek(self._read * ENTRY.itemsize)
            data = file.read()
        return np.frombuffer(data[: len(data) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)

    def view(self, offset: int, rows: int) -> Tensor:
        """Return hidden rows inside the mapping, dtype[rows, H]; not to be written to."""
        start, count = offset // self.dtype.itemsize, rows * self.hidden_size
        if start + count > self._mapped.numel():
            size = _size(self.rows_file) // self.dtype.itemsize
            # private: a mistake that wrote into it would change nobody else's rows
            self._mapped = torch.from_file(
                str(self.rows_file), shared=False, size=size, dtype=self.dtype
            )
        return self._mapped[start : start + count].view(rows, self.hidden_size)

    def check(self, place: Place) -> None:
        """Look, the first time, whether a data row's bytes are those that were written.

        Raises:
            CacheError: They are not.
        """
        if place.offset in self._checked:
            return
        if _crc(self.view(place.offset, place.rows)) != place.crc:
            raise CacheError(
                f"{self.rows_file} is damaged at byte {place.offset:,}: the checksum differs. "
                f"Remove it and {self.index_file.name}; what was in them is asked for again."
            )
        self._checked.add(place.offset)


class SegmentWriter:
    """Appends to a new segment; for one process and one thread."""

    def __init__(self, rows_file: Path) -> None:
        """Make the two files.

        Raises:
            CacheError: They cannot be made.
        """
        self.rows_file = rows_file
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._rows = os.open(rows_file, flags, 0o600)
            self._index = os.open(rows_file.with_suffix(INDEX), flags, 0o600)
        except OSError as error:
            raise _not_written(rows_file, error) from None
        self._end = 0
        self._entries = 0
        self.closed = False

    def append(self, keys: Sequence[bytes], counts: Sequence[int], hidden: Tensor) -> int:
        """Write the hidden rows of several data rows; all of them or nothing.

        Args:
            keys: 16 bytes each.
            counts: Hidden rows of each.
            hidden: dtype[sum of counts, H] on the CPU, contiguous.

        Returns:
            Bytes written.

        Raises:
            CacheError: There is no room; what was written before is whole, and the segment closed.
        """
        entries = np.empty(len(keys), ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), "V16")
        entries["rows"] = counts
        row_bytes = hidden.shape[1] * hidden.dtype.itemsize
        ends = np.cumsum(np.asarray(counts, np.uint64)) * np.uint64(row_bytes)
        entries["offset"] = self._end + np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
        entries["crc"] = [_crc(part) for part in hidden.split(list(counts))]
        size = hidden.numel() * hidden.dtype.itemsize
        try:
            _write(self._rows, _bytes(hidden), self._end)
            _write(self._index, entries.tobytes(), self._entries * ENTRY.itemsize)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._index, self._entries * ENTRY.itemsize)
                os.ftruncate(self._rows, self._end)
            self.close()
            raise _not_written(self.rows_file, error) from None
        self._end += size
        self._entries += len(keys)
        return size

    def close(self) -> None:
        """Bring the rows to the disk, then what names them; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for fd in (self._rows, self._index):
            with contextlib.suppress(OSError):
                os.fsync(fd)
            os.close(fd)


def _write(fd: int, data: memoryview | bytes, position: int) -> None:
    """Write all of `data` at `position`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, position)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, position = rest[written:], position + written


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, of any dtype."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _not_written(file: Path, error: OSError) -> CacheError:
    return CacheError(
        f"Hidden states cannot be written to {file.parent}: {error.strerror}. What is whole there "
        "is kept and used. Free some space, or put the cache elsewhere: cache_dir='/a/larger/disk'."
    )
