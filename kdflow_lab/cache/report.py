"""What a capture came to."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdflow_lab.units import size


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """Hidden states that are on the disk now; shows itself.

    Attributes:
        folder: Where they lie.
        rows: Data rows.
        tokens: Their response tokens, of which each has one hidden row.
        computed: Response tokens that the teacher was asked for; the others were there.
        bytes_per_token: Of a hidden row.
        written: Bytes that were added.
        seconds: It took.
        refused: Why parts of the folder were not used, if any.
    """

    folder: str
    rows: int
    tokens: int
    computed: int
    bytes_per_token: int
    written: int
    seconds: float
    refused: Sequence[str] = ()

    @classmethod
    def merge(cls, parts: Sequence[dict[str, Any]], *, seconds: float) -> Captured:
        """Put the ranks' parts together."""
        summed = ("rows", "tokens", "computed", "written")
        first = parts[0]
        return cls(
            folder=first["folder"],
            bytes_per_token=first["bytes_per_token"],
            refused=tuple(dict.fromkeys(why for part in parts for why in part["refused"])),
            seconds=seconds,
            **{name: sum(part[name] for part in parts) for name in summed},
        )

    @property
    def num_bytes(self) -> int:
        """Of the rows that were asked for, in all."""
        return self.tokens * self.bytes_per_token

    def _lines(self) -> list[tuple[str, str]]:
        lines = [
            ("rows", f"{self.rows:,} with {self.tokens:,} response tokens"),
            ("size", f"{size(self.num_bytes)}, {self.bytes_per_token:,} bytes a token"),
            (
                "computed",
                f"{self.computed:,} tokens in {self.seconds:.1f} s; the others were there",
            ),
            ("folder", self.folder),
        ]
        return lines + [("not used", reason) for reason in self.refused]

    def __str__(self) -> str:
        """One line a figure."""
        return "\n".join(f"{name:9} {text}" for name, text in self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Show the same as a table."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table><tbody>{rows}</tbody></table>"


def announcement(sizes: Sequence[dict[str, Any]]) -> str:
    """Say before a capture what it will take.

    Args:
        sizes: Of each rank: `tokens`, `missing` of them, `bytes_per_token`; `folder`, and the bytes
            that are `free` there.
    """
    tokens, missing = (int(sum(one[name] for one in sizes)) for name in ("tokens", "missing"))
    each, folder, free = (sizes[0][name] for name in ("bytes_per_token", "folder", "free"))
    text = (
        f"{tokens:,} response tokens x {each:,} bytes = {size(tokens * each)}; "
        f"{size((tokens - missing) * each)} are there, {size(missing * each)} go to {folder} "
        f"({size(free)} free)."
    )
    if missing * each > free:
        text += " That does not fit: what fits will be kept."
    return text
