"""A folder of cached hidden states: segments of many runs, found by what the teacher was asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.cache.segment import ROWS, Place, Segment, SegmentWriter
from kdflow_lab.errors import CacheError

if TYPE_CHECKING:
    from typing import Self

    from kdflow_lab.cache.identity import Identity

MANIFEST = "manifest.json"


def row_keys(
    input_ids: np.ndarray, cu_seqlens: np.ndarray, rows: np.ndarray
) -> tuple[list[bytes], np.ndarray]:
    """Name each data row of a micro-batch by what the teacher is asked of it.

    Args:
        input_ids: Integer[S], packed.
        cu_seqlens: Integer[n + 1], where each data row starts, and S.
        rows: Integer[T], rising positions in [0, S) whose hidden states are wanted.

    Returns:
        n keys of 16 bytes, BLAKE2b of a data row's token ids and of the wanted positions in it; and
        Int64[n + 1], where the wanted positions of each data row begin among all, and T.
    """
    ids = np.ascontiguousarray(input_ids, "<i4")
    wanted = np.ascontiguousarray(rows, "<i4")
    cuts = np.searchsorted(wanted, cu_seqlens)
    keys = []
    for number in range(len(cu_seqlens) - 1):
        start, end = int(cu_seqlens[number]), int(cu_seqlens[number + 1])
        digest = hashlib.blake2b(ids[start:end].tobytes(), digest_size=16, person=b"kdflow-rows")
        digest.update((wanted[cuts[number] : cuts[number + 1]] - start).astype("<i4").tobytes())
        keys.append(digest.digest())
    return keys, cuts


class Store:
    """The cached rows of one teacher; one process reads and writes through it."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Open a folder, made if need be, and list what is in it.

        Args:
            folder: Of this teacher alone.
            identity: The teacher's.
            on_refused: Hears why a segment is not used.

        Raises:
            CacheError: It is of another teacher, its manifest cannot be read, or it cannot be made.
        """
        self.folder, self.identity = folder, identity
        self.dtype: torch.dtype = getattr(torch, identity.dtype)
        self.refused: list[str] = []
        """Why segments are not used."""
        self._on_refused = on_refused
        self._segments: dict[str, Segment] = {}
        self._places: dict[bytes, Place] = {}
        self._written: set[bytes] = set()
        self._writer: SegmentWriter | None = None
        self.written_bytes = 0
        """Through this object."""
        self.full = ""
        """Why nothing is written any more; empty while it is."""
        self._open()
        self.refresh()

    def _open(self) -> None:
        """Read the manifest, or write one into a new folder."""
        manifest = self.folder / MANIFEST
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not manifest.exists():
                if any(self.folder.glob(f"*{ROWS}")):
                    raise CacheError(
                        f"{self.folder} has hidden states but no {MANIFEST}: whose they are is not "
                        "known. Remove the folder, or name another one."
                    )
                unfinished = self.folder / f".{MANIFEST}.{uuid.uuid4().hex}"
                unfinished.write_text(json.dumps(self.identity.manifest(), indent=1))
                os.replace(unfinished, manifest)
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except OSError as error:
            raise CacheError(
                f"{self.folder} cannot hold hidden states: {error.strerror}. Name a folder that "
                "can be written: cache_dir='…'."
            ) from None
        except ValueError:
            raise CacheError(
                f"{manifest} is torn: it is no JSON. Whose hidden states those are is not known; "
                "remove the folder, or name another one."
            ) from None
        self.identity.check(found if isinstance(found, dict) else {}, self.folder)

    def refresh(self) -> None:
        """Take in what other processes have added."""
        for file in sorted(self.folder.glob(f"*{ROWS}")):
            if file.name not in self._segments:
                self._segments[file.name] = Segment(
                    file, dtype=self.dtype, hidden_size=self.identity.hidden_size
                )
        for segment in self._segments.values():
            try:
                news = segment.news()
            except CacheError as error:
                self._refuse(str(error))
                continue
            for key, place in news:
                self._places.setdefault(key, place)

    def _refuse(self, reason: str) -> None:
        if reason not in self.refused:
            self.refused.append(reason)
            self._on_refused(reason)

    def __len__(self) -> int:
        """Data rows that are there."""
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        """Whether a data row is there."""
        return key in self._places

    @property
    def row_bytes(self) -> int:
        """Of a hidden row, that is of a response token."""
        return self.identity.hidden_size * self.dtype.itemsize

    @property
    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.folder).free

    @property
    def num_bytes(self) -> int:
        """Of all segments."""
        return sum(file.stat().st_size for file in self.folder.glob(f"*{ROWS}"))

    def places(self, keys: Sequence[bytes]) -> list[Place | None]:
        """Find data rows; the first time, their bytes are checked.

        Returns:
            Where each lies; None for what is not there, or is damaged.
        """
        if any(key not in self._places for key in keys):
            self.refresh()
        found = [self._places.get(key) for key in keys]
        for number, place in enumerate(found):
            if place is None:
                continue
            try:
                place.segment.check(place)
            except CacheError as error:
                self._refuse(str(error))
                del self._places[keys[number]]
                found[number] = None
        return found

    def gather(self, places: Sequence[Place]) -> Tensor:
        """Return the hidden rows of data rows, behind one another.

        Returns:
            dtype[sum of their rows, H]: a view of the mapping where they lie so in one segment (as
            a micro-batch that is asked for again does), else one copy.
        """
        if not places:
            return torch.empty(0, self.identity.hidden_size, dtype=self.dtype)
        first, rows = places[0], sum(place.rows for place in places)
        end = first.offset
        for place in places:
            if place.segment is not first.segment or place.offset != end:
                return torch.cat([place.segment.view(place.offset, place.rows) for place in places])
            end += place.rows * self.row_bytes
        return first.segment.view(first.offset, rows)

    def add(self, keys: Sequence[bytes], counts: Sequence[int], hidden: Tensor) -> int:
        """Keep the hidden rows of data rows; what is there already is left out.

        Args:
            keys: From `row_keys`.
            counts: Hidden rows of each.
            hidden: dtype[sum of counts, H]; on a GPU it is copied.

        Returns:
            Bytes written; 0 once the disk was full.
        """
        if self.full:
            return 0
        new = []
        for number, key in enumerate(keys):
            if key not in self._places and key not in self._written:
                new.append(number)
                self._written.add(key)
        if not new:
            return 0
        if len(new) < len(keys):
            parts = hidden.split(list(counts))
            hidden = torch.cat([parts[number] for number in new])
        try:
            if self._writer is None:
                self._writer = SegmentWriter(self.folder / f"{uuid.uuid4().hex[:12]}{ROWS}")
            written = self._writer.append(
                [keys[number] for number in new],
                [counts[number] for number in new],
                hidden.detach().cpu().contiguous(),
            )
        except CacheError as error:
            self.full = str(error)
            return 0
        self.written_bytes += written
        return written

    def close(self) -> None:
        """Bring what was written to the disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        with contextlib.suppress(CacheError):
            self.refresh()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
