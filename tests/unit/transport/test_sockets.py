"""Only processes of one user meet, and only where no other user can look."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdflow_lab.errors import TransportError
from kdflow_lab.transport import sockets


@contextmanager
def _pair(path: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection, the listening side's end first."""
    with sockets.listen(path, backlog=1) as listener, sockets.connect(path, timeout_s=10) as ours:
        accepted, _ = listener.accept()
        with accepted:
            yield accepted, ours


def test_socket_is_for_its_user_alone(socket_path: str):
    with sockets.listen(socket_path, backlog=1):
        mode = os.stat(socket_path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


def test_both_sides_learn_who_the_other_is(socket_path: str):
    with _pair(socket_path) as (accepted, ours):
        expected = (os.getpid(), os.getuid())
        assert sockets.peer_of(accepted) == expected
        assert sockets.peer_of(ours) == expected


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o777, 0o1777])
def test_folder_that_others_can_enter_is_refused(folder: Path, mode: int):
    path = folder / "s"
    folder.chmod(mode)
    with pytest.raises(TransportError) as caught:
        sockets.listen(str(path), backlog=1)
    assert str(caught.value) == (
        f"The teacher's socket must lie in a folder of this user's alone, but {folder} has mode "
        f"{mode:o}; expected 700. Make one by tempfile.mkdtemp()."
    )
    assert not path.exists()


def test_folder_that_does_not_exist_is_named(folder: Path):
    with pytest.raises(TransportError) as caught:
        sockets.listen(str(folder / "no" / "s"), backlog=1)
    assert str(caught.value) == (
        f"The teacher's socket cannot be made in {folder / 'no'}: no such folder."
    )


def _path_of(folder: Path, num_bytes: int) -> str:
    return str(folder / ("s" * (num_bytes - len(os.fsencode(folder)) - 1)))


@pytest.mark.parametrize("end", ["listen", "connect"])
def test_path_too_long_is_refused_with_its_length(folder: Path, end: str):
    path = _path_of(folder, 108)
    with pytest.raises(TransportError) as caught:
        if end == "listen":
            sockets.listen(path, backlog=1)
        else:
            sockets.connect(path, timeout_s=1)
    assert str(caught.value) == (
        f"The socket path {path!r} has 108 bytes; Linux allows 107. "
        "Use a shorter temporary folder (TMPDIR)."
    )


def test_longest_path_works(folder: Path):
    with _pair(_path_of(folder, 107)) as (accepted, ours):
        ours.send(b"x")
        assert accepted.recv(1) == b"x"


def test_path_that_is_taken_is_refused(socket_path: str):
    Path(socket_path).touch()
    with pytest.raises(TransportError) as caught:
        sockets.listen(socket_path, backlog=1)
    assert str(caught.value) == (
        f"The teacher cannot listen at {socket_path}: Address already in use. Expected a path that "
        "does not exist yet; give each job its own."
    )
    assert Path(socket_path).is_file()


def test_connecting_before_and_after_can_be_told_from_other_failures(socket_path: str):
    with pytest.raises(FileNotFoundError):
        sockets.connect(socket_path, timeout_s=1)
    sockets.listen(socket_path, backlog=1).close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect(socket_path, timeout_s=1)


def test_messages_arrive_whole_and_then_the_end(socket_path: str):
    with _pair(socket_path) as (accepted, ours):
        ours.send(b"first")
        ours.send(b"second")
        ours.close()
        received = [sockets.receive(accepted) for _ in range(4)]
        assert received == [b"first", b"second", b"", b""]


def test_messages_are_read_although_the_peer_left_some_of_ours_unread(socket_path: str):
    """Linux then tells of the reset before it hands out what still waits."""
    with _pair(socket_path) as (accepted, ours):
        accepted.send(b"never read")
        ours.send(b"last words")
        ours.close()
        assert [sockets.receive(accepted) for _ in range(2)] == [b"last words", b""]
