"""A student's end of the ring that asks the teacher only for what the cache lacks, and keeps that.

It stands where a `StudentEnd` stands: the same calls in the same order give the same rows. Rows
that the cache has are taken from its mapping; the others are asked for, used in their slot as ever,
and appended to the cache. A micro-batch that is there whole is still announced, empty, since the
teacher serves all ranks' micro-batches in one order; that costs a message and no computation.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.cache.store import row_keys
from kdflow_lab.errors import TransportError
from kdflow_lab.transport.messages import Kind

if TYPE_CHECKING:
    from typing import Self

    from kdflow_lab.cache.segment import Place
    from kdflow_lab.cache.store import Store
    from kdflow_lab.transport.student_end import HiddenRows, StudentEnd


@dataclass(frozen=True, slots=True)
class _Asked:
    """A micro-batch that was submitted: of each data row its hidden rows, and where they come from.

    Attributes:
        keys: Of the data rows.
        counts: Hidden rows of each.
        places: Where each lies in the cache; None where it does not.
        awaited: Data rows, by number, that an earlier micro-batch has asked for and not received.
    """

    keys: list[bytes]
    counts: list[int]
    places: list[Place | None]
    awaited: frozenset[int]

    @property
    def missing(self) -> list[int]:
        """The data rows that the teacher was asked for."""
        return [
            number
            for number, place in enumerate(self.places)
            if place is None and number not in self.awaited
        ]


class CachedRows:
    """Hidden rows of a micro-batch that came, all or in part, from the cache.

    Attributes:
        step: Step of the data plan.
        index: Micro-batch within the step.
        teacher_s: Seconds that the teacher computed for it.
    """

    def __init__(self, tensor: Tensor, asked: HiddenRows) -> None:
        """Take the tensor, and what the teacher's answer says beside its rows."""
        self.step, self.index, self.teacher_s = asked.step, asked.index, asked.teacher_s
        self._tensor: Tensor | None = tensor

    @property
    def tensor(self) -> Tensor:
        """dtype[T, H], until `release`; not to be written to.

        Raises:
            TransportError: It was released.
        """
        if self._tensor is None:
            raise TransportError("Cached hidden rows were released; use them before release().")
        return self._tensor

    def release(self) -> None:
        """Let go of it; a second call does nothing."""
        self._tensor = None


class CachingEnd:
    """See above; for one thread, as a `StudentEnd`."""

    def __init__(
        self, end: StudentEnd, store: Store, *, on_full: Callable[[str], None] = lambda reason: None
    ) -> None:
        """Put the cache before an end.

        Args:
            end: Where the teacher is asked; closed with this one.
            store: Of the same teacher; closed with this one.
            on_full: Hears once why nothing is kept any more.
        """
        self._end, self._store, self._on_full = end, store, on_full
        self._asked: deque[_Asked] = deque()
        self._awaited: Counter[bytes] = Counter()  # how many micro-batches wait for a data row
        self._held: dict[bytes, Tensor] = {}  # what came meanwhile
        self.rows = self.cached_rows = 0
        """Hidden rows received since the last `take_counts`, and those of them from the cache."""

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the end has it, such as `can_submit` and `describe`."""
        return getattr(self._end, name)

    @property
    def teacher_rests(self) -> bool:
        """Whether the teacher was asked for nothing in all that was submitted and not received."""
        return all(not asked.missing for asked in self._asked)

    def submit(
        self,
        *,
        step: int,
        index: int,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        rows: Tensor,
        kind: Kind = Kind.REQUEST,
    ) -> None:
        """See `StudentEnd.submit`."""
        ids, ends, wanted = (np.asarray(one) for one in (input_ids, cu_seqlens, rows))
        keys, cuts = row_keys(ids, ends, wanted)
        places = self._store.places(keys)
        awaited = self._in_flight(keys, places)
        self._awaited.update(keys[number] for number in awaited)
        asked = _Asked(keys, np.diff(cuts).tolist(), places, awaited)
        missing = asked.missing
        if len(missing) < len(keys):
            ids, ends, wanted = _only(missing, ids, ends, wanted, cuts)
        self._end.submit(
            step=step, index=index, input_ids=ids, cu_seqlens=ends, rows=wanted, kind=kind
        )
        self._asked.append(asked)

    def receive(self, timeout_s: float | None = None) -> HiddenRows | CachedRows:
        """See `StudentEnd.receive`; what the teacher computed is in the cache by then."""
        received = self._end.receive(timeout_s)
        asked = self._asked.popleft()
        missing = asked.missing
        self.rows += sum(asked.counts)
        self.cached_rows += sum(asked.counts) - sum(asked.counts[one] for one in missing)
        if missing:
            self._keep(asked, received.tensor)
        if len(missing) == len(asked.keys):
            return received  # also where there was nothing to ask for: no rows
        places = [place for place in asked.places if place is not None]
        if len(places) == len(asked.keys):
            tensor = self._store.gather(places)
        else:
            tensor = self._joined(asked, received.tensor)
        received.release()
        return CachedRows(tensor, received)

    def _in_flight(self, keys: list[bytes], places: list[Place | None]) -> frozenset[int]:
        """Which data rows need not be asked for, since an earlier micro-batch has just done so."""
        asked = {one.keys[number] for one in self._asked for number in one.missing}
        return frozenset(
            number
            for number, (key, place) in enumerate(zip(keys, places, strict=True))
            if place is None and key in asked
        )

    def _keep(self, asked: _Asked, computed: Tensor) -> None:
        """Append to the cache what the teacher computed, and hold what later ones wait for."""
        keys = [asked.keys[number] for number in asked.missing]
        counts = [asked.counts[number] for number in asked.missing]
        full = self._store.full
        self._store.add(keys, counts, computed)
        if self._store.full and not full:
            self._on_full(self._store.full)
        for key, rows in zip(keys, computed.split(counts), strict=True):
            if self._awaited[key]:
                self._held[key] = rows.cpu().clone()

    def _joined(self, asked: _Asked, computed: Tensor) -> Tensor:
        """Put computed, held and cached rows into the order of the micro-batch, dtype[T, H]."""
        new = iter(computed.cpu().split([asked.counts[number] for number in asked.missing]))
        parts = []
        for number, (key, place) in enumerate(zip(asked.keys, asked.places, strict=True)):
            if place is not None:
                parts.append(self._store.gather([place]))
            elif number in asked.awaited:
                parts.append(self._held[key])
                self._awaited[key] -= 1
                if not self._awaited[key]:
                    del self._held[key], self._awaited[key]
            else:
                parts.append(next(new))
        return torch.cat(parts)

    def take_counts(self) -> tuple[int, int]:
        """Return and reset (hidden rows received, those of them from the cache)."""
        counts = (self.rows, self.cached_rows)
        self.rows = self.cached_rows = 0
        return counts

    def close(self) -> None:
        """Close the end, and bring what was kept to the disk."""
        try:
            self._end.close()
        finally:
            self._store.close()

    def abandon(self) -> None:
        """See `StudentEnd.abandon`."""
        try:
            self._end.abandon()
        finally:
            self._store.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _only(
    numbers: list[int], ids: np.ndarray, ends: np.ndarray, rows: np.ndarray, cuts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a micro-batch down to some of its data rows: ids, ends and wanted positions."""
    parts, wanted, starts = [ids[:0]], [rows[:0]], [0]
    for number in numbers:
        start, end = int(ends[number]), int(ends[number + 1])
        parts.append(ids[start:end])
        wanted.append(rows[cuts[number] : cuts[number + 1]] - start + starts[-1])
        starts.append(starts[-1] + end - start)
    return np.concatenate(parts), np.asarray(starts, ends.dtype), np.concatenate(wanted)
