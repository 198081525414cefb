"""Where the bytes of a slot lie. No torch, no memory: only arithmetic.

A slot carries one micro-batch of one student rank there and back:

    offset 0        header       64 bytes: sequence number, state, what the request is
    offset 64       input_ids    int32[max_tokens]          written by the student
                    cu_seqlens   int32[max_sequences + 1]   (each array starts at a multiple of 64)
                    rows         int32[max_rows]
    hidden_offset   hidden       dtype[max_rows, hidden_size], page aligned, written by the teacher

A slot is a whole number of pages, so that every slot's hidden states are page aligned.

With `on_device` the hidden rows lie in a student's GPU (`cuda_ipc`), slot after slot of
`device_slot_bytes`; at `hidden_offset` stand the handles of the two events that guard them.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from functools import cached_property

from kdflow_lab.errors import TransportError, unknown_name

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""dtypes of hidden rows, and the bytes of one number."""

HEADER_BYTES = 64
_CACHE_LINE = 64
_PACKED = struct.Struct("<4Q15sB")
_DEVICE_LINE = 256  # what CUDA's own allocations are aligned to
EVENTS_BYTES = 128
"""Handles of a slot's two events, with `on_device`."""
_MAX_SLOT_BYTES = 1 << 46
"""Half of the address space of a process: more is a mistake, not a plan."""


@dataclass(frozen=True, kw_only=True)
class SlotLayout:
    """Sizes of a slot and the offsets that follow from them.

    Attributes:
        max_tokens: Most tokens of a micro-batch, prompts included; of the teacher's tokenizer.
        max_sequences: Most rows of the data set that are packed into a micro-batch.
        max_rows: Most hidden rows that come back: the response tokens of a micro-batch.
        hidden_size: Numbers in a hidden row.
        dtype_name: The teacher's own dtype: `float32`, `bfloat16` or `float16`.
        on_device: The hidden rows lie in a GPU, not in the slot.
    """

    max_tokens: int
    max_sequences: int
    max_rows: int
    hidden_size: int
    dtype_name: str
    on_device: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that make no slot.

        Raises:
            ConfigError: The dtype is not one that hidden rows travel in.
            TransportError: A size is negative, or the slot larger than any memory.
        """
        if self.dtype_name not in ITEM_BYTES:
            raise unknown_name("dtype of hidden states", self.dtype_name, ITEM_BYTES)
        for name in ("max_tokens", "max_sequences", "max_rows", "hidden_size"):
            least = 1 if name == "hidden_size" else 0
            if getattr(self, name) < least:
                raise TransportError(
                    f"A ring slot cannot have {name} = {getattr(self, name)}; expected {least} or "
                    "more."
                )
        if self.slot_bytes > _MAX_SLOT_BYTES:
            raise TransportError(
                f"A ring slot of {self.slot_bytes} bytes cannot exist. Expected the sizes of one "
                f"micro-batch, got {self}. Lower micro_batch_tokens."
            )

    @property
    def item_bytes(self) -> int:
        """Bytes of one number of a hidden row."""
        return ITEM_BYTES[self.dtype_name]

    @property
    def row_bytes(self) -> int:
        """Bytes of one hidden row."""
        return self.hidden_size * self.item_bytes

    @property
    def input_ids_offset(self) -> int:
        """Offset of `input_ids` in a slot, in bytes."""
        return HEADER_BYTES

    @property
    def cu_seqlens_offset(self) -> int:
        """Offset of `cu_seqlens` in a slot, in bytes."""
        return _up(self.input_ids_offset + 4 * self.max_tokens, _CACHE_LINE)

    @property
    def rows_offset(self) -> int:
        """Offset of `rows` in a slot, in bytes."""
        return _up(self.cu_seqlens_offset + 4 * (self.max_sequences + 1), _CACHE_LINE)

    @cached_property
    def hidden_offset(self) -> int:
        """Offset of the hidden states in a slot, in bytes; a multiple of the page size."""
        return _up(self.rows_offset + 4 * self.max_rows, mmap.PAGESIZE)

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes from one slot to the next; a multiple of the page size."""
        content = EVENTS_BYTES if self.on_device else self.max_rows * self.row_bytes
        return _up(self.hidden_offset + content, mmap.PAGESIZE)

    @cached_property
    def device_slot_bytes(self) -> int:
        """Bytes from one slot's rows to the next's in a GPU; only used with `on_device`."""
        return _up(self.max_rows * self.row_bytes, _DEVICE_LINE)

    def check(self, *, num_tokens: int, num_sequences: int, num_rows: int) -> None:
        """Refuse a micro-batch that does not fit.

        Raises:
            TransportError: With the three sizes and what to change.
        """
        asked = (num_tokens, num_sequences, num_rows)
        if all(
            got <= most
            for got, most in zip(
                asked, (self.max_tokens, self.max_sequences, self.max_rows), strict=True
            )
        ):
            return
        raise TransportError(
            f"A micro-batch of {num_tokens} tokens, {num_sequences} sequences and {num_rows} "
            f"response tokens does not fit its ring slot, which holds {self.max_tokens} tokens, "
            f"{self.max_sequences} sequences and {self.max_rows} response tokens. "
            "Raise micro_batch_tokens or lower max_length."
        )

    def pack(self) -> bytes:
        """Return the layout as the fixed number of bytes that a hello message carries."""
        return _PACKED.pack(
            self.max_tokens,
            self.max_sequences,
            self.max_rows,
            self.hidden_size,
            self.dtype_name.encode(),
            self.on_device,
        )

    @classmethod
    def unpack(cls, packed: bytes) -> SlotLayout:
        """Read what `pack` wrote.

        Raises:
            TransportError: These bytes are no layout.
        """
        try:
            *sizes, dtype, on_device = _PACKED.unpack(packed)
            name = dtype.rstrip(b"\0").decode("ascii")
            if on_device > 1:
                raise ValueError
        except (struct.error, ValueError):
            raise TransportError(
                f"Expected a slot layout of {PACKED_BYTES} bytes, got {packed[:80]!r}."
            ) from None
        return cls(
            max_tokens=sizes[0],
            max_sequences=sizes[1],
            max_rows=sizes[2],
            hidden_size=sizes[3],
            dtype_name=name,
            on_device=bool(on_device),
        )


PACKED_BYTES = _PACKED.size
"""Bytes of `SlotLayout.pack`."""


def _up(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple
