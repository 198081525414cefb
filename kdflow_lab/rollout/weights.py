"""From a sharded student to the weight segment: bucket by bucket, every parameter once.

Every rank takes part; only rank 0 writes. Beside the segment no rank ever holds more than a bucket:
a parameter that is larger comes in pieces. LoRA adapters are merged, `W + scale * B A`, shard by
shard, and appear under the names of the layers that they adapt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdflow_lab.errors import ModelError
from kdflow_lab.losses._lora import Adapter, adapter_of
from kdflow_lab.transport.segment import NO_VERSION, Entry, WeightSegment, laid_out

BUCKET_BYTES = 64 << 20
_PEFT = "base_model.model."
_BESIDE = "beside."
"""What an algorithm trains beside the student (`Student.beside`); not a part of the model."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter of the student.

    Attributes:
        name: In the plain model.
        parameter: A DTensor that is sharded by rows, or a plain tensor.
        layer: The layer whose LoRA adapters are to be merged into it, or None.
    """

    name: str
    parameter: Any
    layer: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter."""
        return tuple(self.parameter.shape)


def sources(model: torch.nn.Module) -> list[Source]:
    """List what a plain copy of the model has to be given; tied parameters once.

    Args:
        model: The student's, perhaps sharded, perhaps adapted by PEFT.

    Raises:
        ModelError: It is adapted by something else than plain LoRA.
    """
    modules = dict(model.named_modules())
    found: list[Source] = []
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(_BESIDE) or ".lora_" in name or ".original_module." in name:
            continue
        owner, _, leaf = name.rpartition(".")
        layer = None
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            layer = _adapted(modules[owner], owner) if leaf == "weight" else None
        first, _, rest = owner.partition(".modules_to_save.")
        owner = ".".join([first, *rest.split(".")[1:]]) if rest else first
        # what is tied comes once, but for a head that has an adapter of its own
        if id(parameter) not in seen or layer is not None:
            plain = f"{owner}.{leaf}" if owner else leaf
            found.append(Source(plain.removeprefix(_PEFT), parameter, layer))
        seen.add(id(parameter))
    names = [source.name for source in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelError(
            f"{twice[0]} exists several times in the student, as with several adapters that save "
            "whole modules. Expected one."
        )
    return found


def entries_of(model: torch.nn.Module, dtype: torch.dtype) -> list[Entry]:
    """Lay a segment out for a model; reads shapes only.

    Args:
        model: See `sources`.
        dtype: Of the rollout's weights.
    """
    return laid_out([(source.name, source.shape) for source in sources(model)], dtype)


@torch.no_grad()
def write(
    model: torch.nn.Module,
    segment: WeightSegment | None,
    *,
    dtype: torch.dtype,
    version: int,
    buffer: int = 0,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Put the student's weights into a buffer; every rank calls it.

    Args:
        model: The student's; its parameters are sharded, or whole on every rank.
        segment: Made for `entries_of(model, dtype)`; None on all ranks but the first.
        dtype: Of the rollout's weights; what travels is cast already.
        version: Of the weights: the optimizer step.
        buffer: Which; nobody may be reading it.
        bucket_bytes: Largest part that is gathered at once, in the rollout's dtype.

    Raises:
        ModelError: A parameter is sharded in another way than by rows over all ranks.
    """
    reshard(model)
    write_sources(
        sources(model),
        segment,
        dtype=dtype,
        version=version,
        buffer=buffer,
        bucket_bytes=bucket_bytes,
    )


def reshard(model: torch.nn.Module) -> None:
    """Give every rank only its own rows: FSDP may keep the root whole after a forward pass."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


@torch.no_grad()
def write_sources(
    found: Sequence[Source],
    segment: WeightSegment | None,
    *,
    dtype: torch.dtype,
    version: int,
    buffer: int = 0,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Put parameters into a buffer; every rank calls it. See `write`.

    Args:
        found: The same on every rank, in one order.
        segment: Made for their names and shapes; None on all ranks but the first.
        dtype: Of the segment; what travels is cast already.
        version: Of the weights.
        buffer: Which; nobody may be reading it.
        bucket_bytes: Largest part that is gathered at once, in that dtype.

    Raises:
        ModelError: A parameter is sharded in another way than by rows over all ranks.
    """
    if segment is not None:
        segment.stamp(buffer, NO_VERSION)
    entries = {} if segment is None else {entry.name: entry for entry in segment.entries}
    pending: list[_Piece] = []
    for source in found:
        entry = entries.get(source.name)
        target = None if segment is None or entry is None else segment.view(entry, buffer)
        for piece in _pieces(source, target, dtype, bucket_bytes):
            if sum(one.num_bytes for one in (*pending, piece)) > bucket_bytes:
                _gather(pending, dtype)
                pending = []
            pending.append(piece)
    _gather(pending, dtype)
    if segment is not None:
        segment.stamp(buffer, version)


@dataclass(slots=True)
class _Piece:
    """Some rows of a parameter on every rank.

    Attributes:
        shard: Float[rows here, ...], this rank's; the last ranks may have fewer, or none.
        rows: Rows of the fullest rank.
        row_bytes: Of a row, in the rollout's dtype.
        targets: Where the rows of each rank go; None on all ranks but the first.
    """

    shard: Tensor
    rows: int
    row_bytes: int
    targets: list[Tensor] | None

    @property
    def num_bytes(self) -> int:
        """Of all ranks together."""
        return self.rows * self.row_bytes * _world_size()


def _pieces(
    source: Source, target: Tensor | None, dtype: torch.dtype, bucket_bytes: int
) -> Iterator[_Piece]:
    """Cut a parameter into pieces that fit a bucket; what is whole already is written at once."""
    parameter = source.parameter
    if not hasattr(parameter, "to_local"):
        if target is not None:
            target.copy_(merged(source, parameter.detach()))
        return
    placements = parameter.placements
    world_size = _world_size()
    by_rows = len(placements) == 1 and placements[0].is_shard(0)
    if not by_rows or parameter.device_mesh.size() != world_size:
        raise ModelError(
            f"{source.name} is placed as {placements} on a mesh of {parameter.device_mesh.size()}; "
            f"expected its rows to be sharded over all {world_size} ranks, as fully_shard does."
        )
    local = merged(source, parameter.to_local().detach())
    share = rows_each(parameter.shape[0])
    row_bytes = max(1, parameter.shape[1:].numel() * dtype.itemsize)
    step = max(1, bucket_bytes // (row_bytes * world_size))
    for start in range(0, share, step):
        stop = min(share, start + step)
        targets = None
        if target is not None:
            firsts = range(0, world_size * share, share)
            targets = [target[first + start : first + stop] for first in firsts]
        yield _Piece(local[start:stop], stop - start, row_bytes, targets)


def rows_each(rows: int) -> int:
    """Return how many of a parameter's rows the first ranks have: torch.chunk's split, FSDP2's."""
    return -(-rows // _world_size())


def merged(source: Source, local: Tensor) -> Tensor:
    """Add the adapters' product to a shard of the weight they adapt; float32 in between.

    Args:
        source: The parameter.
        local: Its rows on this rank.

    Returns:
        `local` itself where nothing is to be added.
    """
    if source.layer is None:
        return local
    adapter = adapter_of(source.layer)
    if adapter is None:  # switched off, or merged already
        return local
    a, b = adapter.a.detach(), adapter.b.detach()
    if hasattr(a, "full_tensor"):
        a = a.full_tensor()  # type: ignore[attr-defined]
    if hasattr(b, "to_local"):
        b = b.to_local()  # type: ignore[attr-defined]
    return Adapter(a, b).added_to(local)


def _gather(pieces: list[_Piece], dtype: torch.dtype) -> None:
    """Send a bucket's rows to rank 0, which writes them."""
    if not pieces:
        return
    world_size, device = _world_size(), pieces[0].shard.device
    if world_size == 1:
        for piece in pieces:
            assert piece.targets is not None
            piece.targets[0].copy_(piece.shard)
        return
    sizes = [piece.rows * piece.row_bytes // dtype.itemsize for piece in pieces]
    mine = torch.zeros(sum(sizes), dtype=dtype, device=device)
    for part, piece in zip(mine.split(sizes), pieces, strict=True):
        part[: piece.shard.numel()].copy_(piece.shard.reshape(-1))
    is_first = dist.get_rank() == 0
    everybody = [torch.empty_like(mine) for _ in range(world_size)] if is_first else None
    dist.gather(mine, everybody, dst=0)
    for rank, theirs in enumerate(everybody or ()):
        for part, piece in zip(theirs.split(sizes), pieces, strict=True):
            assert piece.targets is not None
            target = piece.targets[rank]
            target.copy_(part[: target.numel()].view(target.shape))


def _adapted(layer: Any, name: str) -> Any:
    """Refuse adapters that cannot be merged as W + B A."""
    embedded = getattr(layer, "lora_embedding_A", {})
    if len(embedded) or getattr(layer, "fan_in_fan_out", False):
        raise ModelError(
            f"{name} is adapted in a way that cannot be merged for the rollout engine: expected "
            "LoRA on a linear layer."
        )
    adapter_of(layer)  # raises for anything else
    return layer


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
