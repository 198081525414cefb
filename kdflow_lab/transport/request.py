"""A request as the teacher sees it, and the order in which the ranks' requests must come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.messages import Kind

if TYPE_CHECKING:
    from kdflow_lab.transport.messages import Message
    from kdflow_lab.transport.ring import Ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One micro-batch of one rank; the tensors lie in the slot until it is published or failed.

    Attributes:
        rank: Who asks.
        step: Step of the data plan.
        index: Micro-batch within the step.
        input_ids: Int32[S], packed without padding.
        cu_seqlens: Int32[n + 1], where each sequence starts, and S.
        rows: Int32[T], positions in [0, S) whose hidden states are wanted.
        in_host: What `out` gives, where the ring's rows lie in host memory; else None.
        ring: The rank's.
        slot: Slot of that ring.
        sequence: Number of the request, counted by the rank.
        kind: `REQUEST`, or `HOLD` and `PHASE` where teacher and students take turns.
    """

    rank: int
    step: int
    index: int
    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    rows: torch.Tensor
    in_host: torch.Tensor | None
    ring: Ring
    slot: int
    sequence: int
    kind: Kind = Kind.REQUEST

    @property
    def out(self) -> torch.Tensor:
        """dtype[T, H] inside the slot, to be written once, within `ring.writing(slot)`.

        Raises:
            TransportError: The rows lie in a GPU that this process cannot open.
        """
        if self.in_host is not None:
            return self.in_host
        return self.ring.hidden(self.slot, self.rows.numel())

    @property
    def num_tokens(self) -> int:
        """S, tokens that the teacher runs for it."""
        return self.input_ids.numel()


def read_request(rank: int, ring: Ring, message: Message) -> Request:
    """Look into the slot that a handle names.

    Raises:
        TransportError: The slot does not hold that request, or the counts in it do not fit.
    """
    header = ring.header(message.slot)
    if (header.sequence, header.rank) != (message.sequence, rank):
        raise TransportError(
            f"Rank {rank} asked for request {message.sequence} in slot {message.slot}, but the "
            f"slot holds request {header.sequence} of rank {header.rank}. This is a bug of "
            "kdflow-lab: please report it."
        )
    input_ids, cu_seqlens, rows = map(torch.from_numpy, ring.request(message.slot, header))
    return Request(
        rank=rank,
        step=header.step,
        index=header.micro_batch,
        input_ids=input_ids,
        cu_seqlens=cu_seqlens,
        rows=rows,
        # In a GPU they are opened by whoever writes them; that need not be this process.
        in_host=(None if ring.layout.on_device else ring.hidden(message.slot, header.num_rows)),
        ring=ring,
        slot=message.slot,
        sequence=message.sequence,
        kind=message.kind,
    )


def total_tokens(requests: Sequence[Request]) -> int:
    """Tokens of several requests together."""
    return sum(request.num_tokens for request in requests)


class Order:
    """Whose turn it is: (step, micro-batch, rank), which is one request of each rank in turn."""

    def __init__(self, world_size: int) -> None:
        """Begin with rank 0, before the first micro-batch.

        Args:
            world_size: Number of ranks.
        """
        self.rank = 0
        """Whose request is next."""
        self._world_size = world_size
        self._round: tuple[int, int] | None = None  # what the ranks before this one asked for
        self._last = (-1, -1)

    def took(self, request: Request) -> None:
        """Go on to the next rank.

        Raises:
            TransportError: The request does not follow the last round, or differs from its own.
        """
        got = (request.step, request.index)
        if got != self._round and (self._round is not None or got <= self._last):
            last = f"one after {self._last}"
            expected = last if self._round is None else f"{self._round}, as the ranks before it"
            raise TransportError(
                f"Rank {request.rank} asked for (step, micro-batch) {got}; expected {expected}. "
                "All ranks must follow the same data plan, in order, empty micro-batches included."
            )
        self._round = got
        self._advance()

    def left_out(self) -> bool:
        """Go on without a rank that has finished; False if a whole round had nothing to ask."""
        empty = self.rank == self._world_size - 1 and self._round is None
        self._advance()
        return not empty

    def _advance(self) -> None:
        self.rank += 1
        if self.rank == self._world_size:
            self.rank = 0
            self._last, self._round = self._round or self._last, None
