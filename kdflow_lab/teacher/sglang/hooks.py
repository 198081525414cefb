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
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdflow_lab.errors import KDFlowLabError, TransportError
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.transport.cuda_ipc import write_rows
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

    Raises:
        TransportError: The engine's process does not listen.
        TimeoutError: It does not answer.
    """
    from sglang.srt.distributed import (  # type: ignore[import-not-found]
        get_tensor_model_parallel_rank,
    )

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    if get_tensor_model_parallel_rank():  # every rank of a group gets all rows: one writes them
        return lambda *_: None
    channel = wire.connect(config["socket"])
    channel.receive(wire.WELCOME_S)
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
        """Open a ring and say so, or close one and say so if that is waited for."""
        number = message["ring"]
        if message["do"] == "open":
            try:
                ring = wire.opened(message, fd)
                ring.open_device()
                self._rings[number] = ring
            except KDFlowLabError as error:
                self._channel.send({"ring": number, "error": str(error)})
            else:
                self._channel.send({"ring": number})
        else:
            if ring := self._rings.pop(number, None):
                ring.close()
            if message.get("wait"):
                self._channel.send({"ring": number})


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
        written: dict[tuple[int, int, int], int] = {}
        report: dict[str, Any] = {}
        try:
            hidden, batch = _inputs(args)
            if not batch.forward_mode.is_extend():
                return  # an empty pass of a parallel rank, or a token that was sampled
            for key, parts in _requests(batch, hidden).items():
                written[key] = write(self._rings[key[0]], parts, hidden)
        except Exception as error:
            report["error"] = f"{type(error).__name__}: {error}"
        report["written"] = [[*key, rows] for key, rows in written.items()]
        report["seconds"] = time.perf_counter() - start
        with contextlib.suppress(wire.Gone):  # the engine's process ended, and this one will too
            self._channel.send(report)


class Part(NamedTuple):
    """A sequence of a pass, or a chunk of one.

    Attributes:
        place: Where its rows go.
        first: Its first row among the pass's hidden states.
        prefix: Positions of the sequence that earlier passes ran.
        num_rows: How many.
    """

    place: Place
    first: int
    prefix: int
    num_rows: int


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


def _requests(batch: Any, hidden: Tensor) -> dict[tuple[int, int, int], list[Part]]:
    """Sort the sequences of a pass that are ours by (ring, slot, sequence number)."""
    lengths = [int(length) for length in batch.extend_seq_lens_cpu]
    prefixes = [int(prefix) for prefix in batch.extend_prefix_lens_cpu]
    if sum(lengths) > hidden.shape[0]:
        raise TransportError(
            f"SGLang's pass has {hidden.shape[0]} hidden rows for {sum(lengths)} tokens. Expected "
            "one a token: no data-parallel attention, no pruning before the head."
        )
    found: dict[tuple[int, int, int], list[Part]] = defaultdict(list)
    first = 0
    for request_id, count, prefix in zip(batch.rids, lengths, prefixes, strict=True):
        if (place := Place.parse(request_id)) is not None:
            found[place[:3]].append(Part(place, first, prefix, count))
        first += count
    return found


def write(ring: Ring, parts: Sequence[Part], hidden: Tensor) -> int:
    """Write the wanted rows of one micro-batch that a pass has computed.

    Args:
        ring: Of the micro-batch.
        parts: Its sequences in this pass; at least one.
        hidden: dtype[S, H], the hidden states of the whole pass.

    Returns:
        Rows written, each once.

    Raises:
        TransportError: The slot holds another request by now, or the rows do not fit it.
    """
    slot, sequence = parts[0].place.slot, parts[0].place.sequence
    header = ring.header(slot)
    if header.sequence != sequence:
        raise TransportError(f"Slot {slot} holds request {header.sequence}, not {sequence}.")
    layout = ring.layout
    dtype_name = str(hidden.dtype).removeprefix("torch.")
    if (hidden.shape[1], dtype_name) != (layout.hidden_size, layout.dtype_name):
        raise TransportError(
            f"SGLang's rows are {hidden.shape[1]} x {dtype_name}, the slot is for "
            f"{layout.hidden_size} x {layout.dtype_name}."
        )
    _, cu_seqlens, rows = ring.request(slot, header)
    source_of = np.full(header.num_tokens, -1, np.int64)  # row of `hidden`, by packed position
    for part in parts:
        start = int(cu_seqlens[part.place.member]) + part.prefix
        stop, last = start + part.num_rows, part.first + part.num_rows
        source_of[start:stop] = np.arange(part.first, last)
    sources = source_of[rows]
    places = np.flatnonzero(sources >= 0)
    if places.size:
        with ring.writing(slot):
            _copy(ring.hidden(slot, header.num_rows), places, hidden, sources[places])
    return places.size


def _copy(out: Tensor, places: np.ndarray, hidden: Tensor, sources: np.ndarray) -> None:
    """Do `out[places] = hidden[sources]`, every row once, with no copy in between on a CPU.

    Args:
        out: dtype[T, H], the slot.
        places: Int64[n], ascending.
        hidden: dtype[S, H].
        sources: Int64[n].
    """
    for start, stop in _runs(np.diff(places) == 1):  # one run, as students ask
        first = int(places[start])
        into = out[first : first + stop - start]
        index = torch.from_numpy(sources[start:stop])
        if hidden.device.type == "cpu":
            with _one_thread():
                write_rows(hidden, index, into)
        else:
            write_rows(hidden, index, into)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on this thread alone.

    A copy is bound by memory: one thread takes 0.9 ms for 17 MB. Two threads on cores that are busy
    with something else wait for each other, 8 ms an operation (both measured).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _runs(joined: np.ndarray) -> list[tuple[int, int]]:
    """Where runs start and stop, from Bool[n - 1]: whether an element goes on with the next."""
    edges = [0, *(np.flatnonzero(~joined) + 1).tolist(), len(joined) + 1]
    return list(pairwise(edges))
