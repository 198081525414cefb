"""AF_UNIX SEQPACKET sockets between processes of one user on one machine."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.messages import MAX_MESSAGE_BYTES

_MAX_PATH_BYTES = 107
"""Of `sockaddr_un` on Linux."""

_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """Who is at the other end, as the kernel tells it."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel for the process and user at the other end (SO_PEERCRED)."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(packed)
    return Peer(pid, uid)


def listen(path: str, *, backlog: int) -> socket.socket:
    """Bind a listening socket that only this user can connect to.

    Raises:
        TransportError: The path is too long, taken, or in no folder of this user's alone.
    """
    _check_path(path)
    folder = Path(path).parent
    if not folder.is_dir():
        raise TransportError(f"The teacher's socket cannot be made in {folder}: no such folder.")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise TransportError(
            f"The teacher's socket must lie in a folder of this user's alone, but {folder} has "
            f"mode {stat.S_IMODE(folder.stat().st_mode):o}; expected 700. Make one by "
            "tempfile.mkdtemp()."
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise TransportError(
            f"The teacher cannot listen at {path}: {error.strerror}. Expected a path that does not "
            "exist yet; give each job its own."
        ) from None
    return listener


def connect(path: str, *, timeout_s: float) -> socket.socket:
    """Connect once to a listening socket.

    Raises:
        FileNotFoundError: Nobody listens there (yet).
        ConnectionRefusedError: Nobody listens there any more, or not yet.
        TransportError: The path is too long, or the listener belongs to another user.
    """
    _check_path(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
        peer = peer_of(connection)
        if peer.uid != os.getuid():
            raise TransportError(
                f"The process listening at {path} belongs to user {peer.uid}, expected "
                f"{os.getuid()}. Start teacher and students as one user."
            )
    except BaseException:
        connection.close()
        raise
    return connection


def receive(connection: socket.socket) -> bytes:
    """Receive one message; empty when the peer is gone and nothing of it is left to read."""
    for _ in range(2):
        try:
            return connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            # Told once, before the messages that wait, if the peer left some of ours unread.
            continue
    return b""


def _check_path(path: str) -> None:
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise TransportError(
            f"The socket path {path!r} has {len(os.fsencode(path))} bytes; Linux allows "
            f"{_MAX_PATH_BYTES}. Use a shorter temporary folder (TMPDIR)."
        )
