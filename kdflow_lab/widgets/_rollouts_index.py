"""Finding one's way in a `rollouts.jsonl`: where each answer lies, and its numbers.

Only the numbers at the head of a line are read (`kdflow_lab.on_policy.journal` puts them first), so
that a file of 100,000 answers opens fast; a whole answer is read when it is looked at.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdflow_lab.errors import DataError, unknown_name

CHUNK = 8 << 20
HEAD = 400
"""Bytes in which the numbers of a line end."""
_PROMPT = b', "prompt": '
_IDS = b', "ids": '
ORDERS = ("step", "kl_mean", "kl_max", "length", "staleness", "row")
"""What answers can be sorted by."""


class Entry(NamedTuple):
    """One answer of the file.

    Attributes:
        start: Byte at which its line begins.
        size: Bytes of the line.
        step: The step that learnt from it, or the checkpoint at which a pinned prompt was answered.
        attempt: Of the run.
        version: Steps that made the weights that wrote it.
        row: Of the data.
        length: Its tokens.
        finished: Whether it ended by itself.
        kl_mean: Nats a token; NaN where nobody looked.
        kl_max: Nats, of its worst token; NaN where nobody looked.
        pinned: Whether its prompt is answered at every checkpoint.
    """

    start: int
    size: int
    step: int
    attempt: int
    version: int
    row: int
    length: int
    finished: bool
    kl_mean: float
    kl_max: float
    pinned: bool

    @property
    def staleness(self) -> int:
        """By how many steps the weights were older than the step that learnt from them."""
        return self.step - self.version - (not self.pinned)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which answers are listed.

    Attributes:
        text: In prompt or answer, in whatever case; empty for all.
        finished: True for those that ended, False for those that were cut, None for both.
        pinned: True for pinned prompts, False for sampled answers, None for both.
        kl: Nats that some token reaches; 0 also takes answers that nobody looked at.
        first_step: The first; also `last_step`.
        last_step: The last; None takes all.
    """

    text: str = ""
    finished: bool | None = None
    pinned: bool | None = False
    kl: float = 0.0
    first_step: int = 0
    last_step: int | None = None

    def fits(self, entry: Entry) -> bool:
        """Whether the numbers of an answer are wanted; its text is not looked at."""
        return (
            self.finished in (None, entry.finished)
            and self.pinned in (None, entry.pinned)
            and (self.kl <= 0 or entry.kl_max >= self.kl)
            and self.first_step <= entry.step
            and (self.last_step is None or entry.step <= self.last_step)
        )


class RolloutIndex:
    """The answers of a file that may still grow; any thread may ask."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet; the file need not exist yet."""
        self.path = path
        self._entries: list[Entry] = []
        self._position = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Answers that were found so far."""
        return len(self._entries)

    def read(self) -> int:
        """Look for new lines; return how many there were."""
        with self._lock:
            before = len(self._entries)
            try:
                with self.path.open("rb") as file:
                    for start, line in self._lines(file):
                        if (entry := _entry(start, line)) is not None:
                            self._entries.append(entry)
            except FileNotFoundError:
                return 0
            return len(self._entries) - before

    def _lines(self, file: Any) -> Iterator[tuple[int, bytes]]:
        """Yield new whole lines and where they begin; the last one may be half written."""
        file.seek(self._position)
        rest = b""
        while chunk := file.read(CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield self._position, line
                self._position += len(line) + 1

    def entries(self) -> list[Entry]:
        """Return all answers, in the order of the file."""
        return list(self._entries)

    def line(self, at: int) -> dict[str, Any]:
        """Read one whole answer.

        Raises:
            DataError: There is none of that number, or the file was changed.
        """
        if not 0 <= at < len(self._entries):
            raise DataError(
                f"There is no answer {at}: {self.path.name} has {len(self._entries)}, counted "
                "from 0 as in browser.frame."
            )
        entry = self._entries[at]
        try:
            return json.loads(next(self._raw([entry])))
        except (OSError, ValueError):
            raise DataError(
                f"Answer {at} can no longer be read from {self.path}: the file was changed. Open "
                "the browser again: run.rollouts()."
            ) from None

    def _raw(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """Yield the bytes of some lines."""
        with self.path.open("rb") as file:
            for entry in entries:
                file.seek(entry.start)
                yield file.read(entry.size)

    def select(
        self,
        wanted: Wanted,
        order: str = "step",
        *,
        descending: bool = True,
        later: Sequence[tuple[int, int]] = (),
    ) -> list[int]:
        """Return the numbers of the wanted answers, sorted; unknown divergences come last.

        Args:
            wanted: Which.
            order: One of `ORDERS`.
            descending: Largest first.
            later: Attempts and the step that each began from: what older attempts wrote beyond it
                counts no more.

        Raises:
            ConfigError: There is no such order.
        """
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        entries = self.entries()
        found = [
            at
            for at, entry in enumerate(entries)
            if wanted.fits(entry)
            and not any(entry.attempt < one and entry.step > step for one, step in later)
        ]
        if wanted.text:
            found = self._with_text(entries, found, wanted.text)
        sign = -1 if descending else 1

        def key(at: int) -> tuple[bool, float, int]:
            value = float(getattr(entries[at], order))
            unknown = math.isnan(value)
            return unknown, 0.0 if unknown else sign * value, sign * at

        return sorted(found, key=key)

    def _with_text(self, entries: list[Entry], found: list[int], text: str) -> list[int]:
        """Of some answers, those with a text in their prompt or in themselves."""
        asked = json.dumps(text, ensure_ascii=False)[1:-1].lower()
        lines = self._raw([entries[at] for at in found])
        return [
            at for at, line in zip(found, lines, strict=True) if asked in _prompt_and_text(line)
        ]


def _prompt_and_text(line: bytes) -> str:
    """The part of a line that holds them, as JSON writes it."""
    start, end = line.find(_PROMPT), line.find(_IDS)
    return line[max(0, start) : end if end > 0 else len(line)].decode(errors="replace").lower()


def _entry(start: int, line: bytes) -> Entry | None:
    """The numbers of a line; None if it is none, such as one that a dying machine tore."""
    cut = line.find(_PROMPT, 0, HEAD)
    try:
        found = json.loads(line[:cut] + b"}") if cut > 0 else json.loads(line)
        if "length" not in found:  # of an older version
            found = json.loads(line)
            known = [one for one in found.get("kl") or [] if one is not None]
            found["length"] = len(found["ids"])
            found["kl_mean"] = sum(known) / len(known) if known else None
            found["kl_max"] = max(known, default=None)
        return Entry(
            start,
            len(line),
            found["step"],
            found.get("attempt", 1),
            found["version"],
            found["row"],
            found["length"],
            found["finished"],
            math.nan if found["kl_mean"] is None else found["kl_mean"],
            math.nan if found["kl_max"] is None else found["kl_max"],
            found.get("pinned", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
