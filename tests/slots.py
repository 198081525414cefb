"""A ring of a test's own: requests in, rows out, with no student and no socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import Kind, Message
from kdflow_lab.transport.request import Request, read_request
from kdflow_lab.transport.ring import Ring


class Slots:
    """A ring whose student and teacher are one test."""

    def __init__(self, teacher: Any, *, slots: int = 3, max_tokens: int = 1024) -> None:
        layout = SlotLayout(
            max_tokens=max_tokens,
            max_sequences=64,
            max_rows=max_tokens,
            hidden_size=teacher.hidden_size,
            dtype_name=str(teacher.dtype).removeprefix("torch."),
        )
        self._student, fd = Ring.create(layout, slots=slots)
        self.ring = Ring.attach(fd, layout, slots=slots, keep_fd=True)
        self._sequence = 0

    def request(
        self, sequences: Sequence[Tensor], rows: Sequence[int] | None = None, *, slot: int = 0
    ) -> Request:
        """Ask for rows of packed sequences; all if none are named. Old rows become NaN."""
        self._sequence += 1
        ends = torch.tensor([0, *map(len, sequences)]).cumsum(0)
        total = int(ends[-1])
        wanted = range(total) if rows is None else rows
        self._student.hidden(slot, len(wanted)).fill_(float("nan"))
        self._student.write_request(
            slot,
            sequence=self._sequence,
            step=self._sequence,
            micro_batch=0,
            rank=0,
            input_ids=torch.cat([*sequences, torch.empty(0, dtype=torch.int32)]),
            cu_seqlens=ends,
            rows=torch.tensor(list(wanted), dtype=torch.int32),
        )
        return read_request(0, self.ring, Message(Kind.REQUEST, slot, self._sequence))

    def rows(self, request: Request) -> Tensor:
        """What the student sees: dtype[T, H]."""
        return self._student.hidden(request.slot, len(request.rows))

    def close(self) -> None:
        self.ring.close()
        self._student.close()
