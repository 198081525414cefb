"""What goes over the socket between a student rank and the teacher. Handles, never tensors.

The socket is AF_UNIX SOCK_SEQPACKET: a message arrives whole and in order, or not at all.

    student -> teacher                              teacher -> student
    HELLO     ring of this rank, with the memfd     WELCOME   served from now on
    REQUEST   this slot is filled: compute it       REFUSED   not served, and why (text)
    HOLD      as REQUEST, answered with its phase   DONE      this slot holds the hidden rows
    PHASE     as HOLD, the last one of its phase    FAILED    this slot failed, and why (text)
    GOODBYE   nothing more will be asked or read    ENDED     no slot will be answered (text)

Little-endian structs:

    HELLO     4s magic, H schema version, H unused, I rank, I world_size, I slots, I unused,
              then `SlotLayout.pack()`: 72 bytes, and one file descriptor beside them;
              if the layout is `on_device`, then `DeviceHandle.pack()`: 80 bytes
    others    B kind, 3 unused, I slot, Q sequence number, d seconds: 24 bytes, then UTF-8 text

`seconds` is what the teacher computed for a DONE slot. What a request asks for stands in the slot's
header (`ring.SlotHeader`); the sequence number in both places must agree.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.device import DeviceHandle
from kdflow_lab.transport.layout import PACKED_BYTES, SlotLayout

SCHEMA = 2
"""Version of the messages and of the slot's layout; both sides must have the same."""

MAX_MESSAGE_BYTES = 4096
_MAGIC = b"KDFR"
_HELLO = struct.Struct("<4sHHIIII")
_HANDLE = struct.Struct("<B3xIQd")


class Kind(IntEnum):
    """What a message after the hello says."""

    WELCOME = 1
    REFUSED = 2
    REQUEST = 3
    DONE = 4
    FAILED = 5
    GOODBYE = 6
    ENDED = 7
    HOLD = 8
    PHASE = 9


ASKING = (Kind.REQUEST, Kind.HOLD, Kind.PHASE)
"""What a student asks for hidden rows with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A student rank introduces itself and its ring."""

    rank: int
    world_size: int
    slots: int
    layout: SlotLayout
    device: DeviceHandle | None = None
    """Where the rows lie, if not in the ring: with `layout.on_device`."""

    def pack(self) -> bytes:
        """Return the message's bytes; the descriptor travels beside them."""
        head = _HELLO.pack(_MAGIC, SCHEMA, 0, self.rank, self.world_size, self.slots, 0)
        return head + self.layout.pack() + (b"" if self.device is None else self.device.pack())

    @classmethod
    def unpack(cls, message: bytes) -> Hello:
        """Read what `pack` wrote.

        Raises:
            TransportError: It is no hello, or one of another schema version.
        """
        if len(message) < _HELLO.size or not message.startswith(_MAGIC):
            raise TransportError(
                f"Expected the hello of a student, got {message[:16]!r}. Only kdflow-lab's "
                "students may connect to the teacher's socket."
            )
        _, schema, _, rank, world_size, slots, _ = _HELLO.unpack_from(message)
        if schema != SCHEMA:
            raise TransportError(
                f"The student speaks version {schema} of the ring's messages, the teacher version "
                f"{SCHEMA}. Run both with the same kdflow-lab: restart the engines (lab.close(), "
                "lab.up())."
            )
        layout = SlotLayout.unpack(message[_HELLO.size : _HELLO.size + PACKED_BYTES])
        rest = message[_HELLO.size + PACKED_BYTES :]
        return cls(
            rank=rank,
            world_size=world_size,
            slots=slots,
            layout=layout,
            device=DeviceHandle.unpack(rest) if layout.on_device else None,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """Any message but the hello."""

    kind: Kind
    slot: int = 0
    sequence: int = 0
    seconds: float = 0.0
    text: str = ""

    def pack(self) -> bytes:
        """Return the message's bytes; a text too long for one message is cut."""
        handle = _HANDLE.pack(self.kind, self.slot, self.sequence, self.seconds)
        return handle + self.text.encode(errors="replace")[: MAX_MESSAGE_BYTES - _HANDLE.size]

    @classmethod
    def unpack(cls, message: bytes) -> Message:
        """Read what `pack` wrote.

        Raises:
            TransportError: These bytes are no message.
        """
        try:
            kind, slot, sequence, seconds = _HANDLE.unpack_from(message)
            text = message[_HANDLE.size :].decode(errors="ignore")
            return cls(Kind(kind), slot, sequence, seconds, text)
        except (struct.error, ValueError):
            raise TransportError(f"Expected a ring message, got {message[:32]!r}.") from None
