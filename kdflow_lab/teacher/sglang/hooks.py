"""The forward hook in SGLang's scheduler process: writes the wanted rows into their slots.

SGLang calls `factory` once a rank, when the model is loaded, and the hook after every forward pass
of the module that gets the final norm's rows (`ServerArgs.forward_hooks`). A request's id says
where its rows go: ring, slot, sequence number, and which sequence of the micro-batch it is. Nothing
but small messages leaves this process: how many rows were written, or why they were not. The hook
never raises: that would end the whole engine.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.errors import KDFlowLabError, TransportError
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport.ring import Ring

PREFIX = "kdflow"


class Place(NamedTuple):
    """Where a sequence's rows go; its text is the id of SGLang's request.

    Attributes:
        ring: Number of the ring.
        slot: Slot of that ring.
        sequence: Number of the micro-batch, counted by its rank.
        member: Which sequence of the micro-batch, from 0.
    """

    ring: int
    slot: int
    sequence: int
    member: int

    def __str__(self) -> str:
        """The request's id."""
        return f"{PREFIX}-{self.ring}-{self.slot}-{self.sequence}-{self.member}"

    @classmethod
    def parse(cls, request_id: str) -> Place | None:
        """Read what `str` wrote; None for a request that is not ours."""
        prefix, *numbers = request_id.split("-")
        if prefix != PREFIX or len(numbers) != 4:
            return None
        return cls(*map(int, numbers))


def factory(config: dict[str, Any]) -> Callable[..., None]:
    """Make the hook of one rank; named in `ServerArgs.forward_hooks`.

    Args:
        config: `socket`, the abstract name where the engine's process listens; `threads`, CPU
            threads of the matrix products, or None.
    """
    from sglang.srt.distributed import (  # type: ignore[import-not-found]
        get_tensor_model_parallel_rank,
    )

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    if get_tensor_model_parallel_rank():  # every rank of a group gets all rows: one writes them
        return lambda *_: None
    channel = wire.connect(config["socket"])
    rings = Rings(channel)
    threading.Thread(target=rings.listen, name="rings", daemon=True).start()
    return Hook(channel, rings)


class Rings:
    """The rings that this process has mapped, by number; opened and closed from outside."""

    def __init__(self, channel: wire.Channel) -> None:
        """No ring yet.

        Args:
            channel: Where the rings come from.
        """
        self._channel = channel
        self._rings: dict[int, Ring] = {}

    def __getitem__(self, number: int) -> Ring:
        """Return a ring.

        Raises:
            TransportError: It was closed, or never opened.
        """
        ring = self._rings.get(number)
        if ring is None:
            raise TransportError(f"Ring {number} is not open in SGLang's process.")
        return ring

    def listen(self) -> None:
        """Obey until the other end is gone."""
        with contextlib.suppress(wire.Gone):
            while True:
                message, fd = self._channel.receive()
                self.obey(message, fd)

    def obey(self, message: dict[str, Any], fd: int | None) -> None:
        """Open a ring and say so, or close one."""
        number = message["ring"]
        if message["do"] == "open":
            try:
                self._rings[number] = wire.opened(message, fd)
            except KDFlowLabError as error:
                self._channel.send({"ring": number, "error": str(error)})
            else:
                self._channel.send({"ring": number})
        elif ring := self._rings.pop(number, None):
            ring.close()


class Hook:
    """Called after every forward pass, with its inputs."""

    def __init__(self, channel: wire.Channel, rings: Rings) -> None:
        """Write into `rings`, report to `channel`."""
        self._channel = channel
        self._rings = rings

    def __call__(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Write the rows of this pass.

        Args:
            module: SGLang's `LogitsProcessor`.
            args: Its inputs, among them Float[S, H] hidden states behind the final norm, and the
                `ForwardBatch`.
            output: Not used.
        """
        start = time.perf_counter()
        written: dict[tuple[int, int, int], int] = defaultdict(int)
        report: dict[str, Any] = {}
        try:
            hidden, batch = _inputs(args)
            if not batch.forward_mode.is_extend():
                return  # an empty pass of a parallel rank, or a token that was sampled
            for place, first, prefix, count in _sequences(batch, hidden):
                ring = self._rings[place.ring]
                rows = write(ring, place, hidden[first : first + count], prefix)
                written[place[:3]] += rows
        except Exception as error:
            report["error"] = f"{type(error).__name__}: {error}"
        report["written"] = [[*key, rows] for key, rows in written.items()]
        report["seconds"] = time.perf_counter() - start
        with contextlib.suppress(wire.Gone):  # the engine's process ended, and this one will too
            self._channel.send(report)


def _inputs(args: tuple[Any, ...]) -> tuple[Tensor, Any]:
    """Find the hidden states and the forward batch among the module's inputs."""
    batch = next((one for one in args if hasattr(one, "forward_mode")), None)
    if batch is None or len(args) < 2 or not isinstance(args[1], Tensor) or args[1].ndim != 2:
        raise TransportError(
            "This model calls SGLang's LogitsProcessor in another way than kdflow-lab knows: "
            "expected (input_ids, hidden_states, lm_head, forward_batch). Use "
            "teacher_backend='transformers'."
        )
    return args[1], batch


def _sequences(batch: Any, hidden: Tensor) -> Iterator[tuple[Place, int, int, int]]:
    """Yield our sequences of a pass: place, first row in `hidden`, first position, rows."""
    lengths = [int(length) for length in batch.extend_seq_lens_cpu]
    prefixes = [int(prefix) for prefix in batch.extend_prefix_lens_cpu]
    if sum(lengths) > hidden.shape[0]:
        raise TransportError(
            f"SGLang's pass has {hidden.shape[0]} hidden rows for {sum(lengths)} tokens. Expected "
            "one a token: no data-parallel attention, no pruning before the head."
        )
    first = 0
    for request_id, count, prefix in zip(batch.rids, lengths, prefixes, strict=True):
        if (place := Place.parse(request_id)) is not None:
            yield place, first, prefix, count
        first += count


def write(ring: Ring, place: Place, hidden: Tensor, prefix: int) -> int:
    """Write the wanted rows of one sequence, or of one chunk of it.

    Args:
        ring: Of the place.
        place: Whose rows they are.
        hidden: dtype[n, H], rows of the sequence's positions prefix … prefix + n - 1.
        prefix: Positions of the sequence that earlier passes ran.

    Returns:
        Rows written, each once.

    Raises:
        TransportError: The slot holds another request by now, or the rows do not fit it.
    """
    header = ring.header(place.slot)
    if header.sequence != place.sequence:
        raise TransportError(
            f"Slot {place.slot} holds request {header.sequence}, not {place.sequence}."
        )
    layout = ring.layout
    dtype_name = str(hidden.dtype).removeprefix("torch.")
    if (hidden.shape[1], dtype_name) != (layout.hidden_size, layout.dtype_name):
        raise TransportError(
            f"SGLang's rows are {hidden.shape[1]} x {dtype_name}, the slot is for "
            f"{layout.hidden_size} x {layout.dtype_name}."
        )
    _, cu_seqlens, rows = ring.request(place.slot, header)
    start = int(cu_seqlens[place.member]) + prefix
    stop = start + hidden.shape[0]
    out = ring.hidden(place.slot, header.num_rows)
    if _ascending(rows):
        low, high = (int(edge) for edge in np.searchsorted(rows, (start, stop)))
        _copy(out[low:high], hidden, rows[low:high] - start)
        return high - low
    # Any order is allowed, though no student of ours asks so: one write a run of places.
    places = np.flatnonzero((rows >= start) & (rows < stop))
    for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        if run.size:
            _copy(out[run[0] : run[-1] + 1], hidden, rows[run] - start)
    return len(places)


def _ascending(rows: np.ndarray) -> bool:
    return bool((rows[1:] > rows[:-1]).all())


def _copy(out: Tensor, hidden: Tensor, positions: np.ndarray) -> None:
    """Write `hidden[positions]` into `out`: one operation, no copy in between on a CPU."""
    count = len(positions)
    if not count:
        return
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == count and _ascending(positions):
        out.copy_(hidden[first : last + 1])
    elif hidden.device.type == "cpu":
        torch.index_select(hidden, 0, torch.from_numpy(positions), out=out)
    else:
        out.copy_(hidden.index_select(0, torch.from_numpy(positions).to(hidden.device)))
