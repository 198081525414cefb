"""Small messages between the processes of the SGLang teacher: JSON, some with a descriptor beside.

The sockets are AF_UNIX SEQPACKET: a message arrives whole and in order, or not at all. None has a
path that could be left behind: one is an inherited pair, the other's name is abstract.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from typing import Any

from kdflow_lab.errors import TransportError
from kdflow_lab.transport import sockets
from kdflow_lab.transport.device import DeviceHandle
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.ring import Ring

MAX_BYTES = 1 << 17
"""Of a message; the kernel's buffer holds it."""


WELCOME = {"do": "welcome"}
"""What a hook hears first."""
WELCOME_S = 60.0
"""How long it waits for that."""


class Gone(TransportError):
    """The process at the other end has ended or closed its end."""


class Channel:
    """One end of a connection. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected socket.

        Args:
            connection: AF_UNIX SEQPACKET.
        """
        self._socket = connection
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Descriptor to poll; POLLHUP says that the other end is gone."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any], *, fd: int | None = None) -> None:
        """Send a message, with a copy of a descriptor if one is given.

        Raises:
            Gone: Nobody is there to read it.
        """
        packed = json.dumps(message).encode()
        try:
            with self._sending:
                fds = [] if fd is None else [fd]
                socket.send_fds(self._socket, [packed], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Gone(f"A message could not be sent: {error.strerror}.") from None

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], int | None]:
        """Wait for a message.

        Args:
            timeout_s: None waits for as long as the other end is there.

        Returns:
            The message, and the descriptor that came with it.

        Raises:
            Gone: The other end is gone and nothing of it is left to read.
            TimeoutError: Nothing came in time.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(None if timeout_s is None else 1000 * timeout_s):
            raise TimeoutError
        try:
            packed, fds, _, _ = socket.recv_fds(self._socket, MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise Gone(f"A message could not be read: {error.strerror}.") from None
        if not packed:
            raise Gone("The other end is gone.")
        return json.loads(packed), fds[0] if fds else None

    def close(self) -> None:
        """Close this end; a second call does nothing. Wakes a thread that receives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def listen() -> tuple[socket.socket, str]:
    """Listen under an abstract name, which is gone with the socket.

    Returns:
        The socket, and the name for `connect`.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = f"kdflow-sglang-{os.getpid()}-{os.urandom(8).hex()}"
    listener.bind(f"\0{name}")
    listener.listen(64)
    return listener, name


def accept(listener: socket.socket) -> Channel | None:
    """Take the next connection; None for one of another user, since anybody can see the name."""
    connection, _ = listener.accept()
    if sockets.peer_of(connection).uid != os.getuid():
        connection.close()
        return None
    return Channel(connection)


def connect(name: str) -> Channel:
    """Connect to a `listen`er.

    Raises:
        TransportError: Nobody listens, or another user does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"\0{name}")
        owner = sockets.peer_of(connection).uid
        if owner != os.getuid():
            raise TransportError(f"User {owner} listens at {name!r}, expected {os.getuid()}.")
    except OSError as error:
        connection.close()
        raise TransportError(
            f"Nobody listens at {name!r}: {error.strerror}. Expected the teacher's process."
        ) from None
    except TransportError:
        connection.close()
        raise
    return Channel(connection)


def opening(number: int, ring: Ring) -> dict[str, Any]:
    """Build the message that hands a ring on; its `fd` goes beside.

    Args:
        number: How the ring is called from now on.
        ring: Attached with its descriptor kept.
    """
    message: dict[str, Any] = {
        "do": "open",
        "ring": number,
        "layout": ring.layout.pack().hex(),
        "slots": ring.slots,
    }
    if ring.device is not None:
        message["device"] = ring.device.pack().hex()
    return message


def opened(message: dict[str, Any], fd: int | None, *, keep_fd: bool = False) -> Ring:
    """Map the ring that an `opening` hands on.

    Raises:
        TransportError: There is no descriptor, or it is no ring of that layout.
    """
    if fd is None:
        raise TransportError("The message that opens a ring came without its memory.")
    layout = SlotLayout.unpack(bytes.fromhex(message["layout"]))
    device = message.get("device")
    return Ring.attach(
        fd,
        layout,
        slots=message["slots"],
        keep_fd=keep_fd,
        device=None if device is None else DeviceHandle.unpack(bytes.fromhex(device)),
    )
