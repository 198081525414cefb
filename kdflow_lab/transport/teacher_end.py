"""The teacher's end of the rings: takes the ranks in and hands out their requests in order.

Students meet in collectives, so the order of answers matters: were the teacher to serve rank 0 far
ahead while rank 1 waits, both would stand still. Requests come out strictly by (step, micro-batch,
rank), which is one request of each rank in turn, since all ranks ask for the same micro-batches.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.errors import TransportError
from kdflow_lab.transport import sockets
from kdflow_lab.transport.messages import ASKING, MAX_MESSAGE_BYTES, Hello, Kind, Message
from kdflow_lab.transport.request import Order, Request, read_request, total_tokens
from kdflow_lab.transport.ring import Ring, SlotState

if TYPE_CHECKING:
    from typing import Self


@dataclass(slots=True)
class _Rank:
    """A connected student rank."""

    connection: socket.socket
    ring: Ring
    pid: int
    waiting: deque[Message] = field(default_factory=deque)
    finished: bool = False


class TeacherEnd:
    """Listens for `world_size` student ranks of one job, and serves them until all have finished.

    One thread iterates and answers. `close` may be called from any other: it ends a wait at once.
    """

    def __init__(self, socket_path: str, *, world_size: int) -> None:
        """Listen, so that students can connect from now on.

        Args:
            socket_path: A path that does not exist yet, in a folder of mode 0700.
            world_size: Number of student ranks that will connect.

        Raises:
            TransportError: The socket cannot be made there.
        """
        self.world_size = world_size
        self._path = socket_path
        self._expected = (0, "")  # hidden size and dtype of every rank's layout
        # World_size strangers may queue up beside the ranks before one is told to wait.
        self._listener: socket.socket | None = sockets.listen(socket_path, backlog=2 * world_size)
        self._ranks: dict[int, _Rank] = {}
        self._strangers: dict[int, socket.socket] = {}
        self._closed = False
        # A pair of sockets and not an eventfd: sending on a closed one cannot hit another's file.
        self._wake, self._waker = socket.socketpair()
        # Held while sockets are waited on or used; not while the teacher computes.
        self._lock = threading.RLock()

    def requests(self, *, hidden_size: int, dtype_name: str) -> Iterator[Request]:
        """Yield the ranks' requests, in order, until every rank has closed its end.

        Each is to be published or failed before the next is taken. A rank that has closed is left
        out. Also ends when `close` is called.

        Args:
            hidden_size: Of the teacher; every rank's layout must have it.
            dtype_name: Of the teacher, such as `bfloat16`.

        Raises:
            TransportError: A rank died, or speaks another version, has another layout, comes twice,
                or asks out of order. All connected ranks are told the same.
        """
        for batch in self.batches(hidden_size=hidden_size, dtype_name=dtype_name, most_tokens=0):
            yield from batch

    def batches(
        self, *, hidden_size: int, dtype_name: str, most_tokens: int
    ) -> Iterator[list[Request]]:
        """Yield the same, in the same order, with what waits already taken together.

        Waits for the first request of each list; adds those that follow it in order, are there
        without waiting, and leave the list's tokens within the budget.

        Args:
            hidden_size: As in `requests`.
            dtype_name: As in `requests`.
            most_tokens: Budget of a list; its first request is taken in any case.

        Raises:
            TransportError: As in `requests`.
        """
        self._expected = (hidden_size, dtype_name)
        order = Order(self.world_size)
        try:
            while True:
                batch: list[Request] = []
                room: int | None = None
                while request := self._next(order, room):
                    batch.append(request)
                    room = most_tokens - total_tokens(batch)
                    if room <= 0:
                        break
                if not batch:
                    return
                yield batch
        except TransportError as error:
            self._end(str(error))
            raise

    @property
    def num_active(self) -> int:
        """Ranks that have not finished."""
        with self._lock:
            return self.world_size - sum(rank.finished for rank in self._ranks.values())

    def publish(self, request: Request, teacher_s: float) -> None:
        """Hand the written rows over.

        Args:
            request: Whose `out` is written.
            teacher_s: Seconds that the teacher computed.
        """
        self._answer(request, SlotState.READY, Kind.DONE, seconds=teacher_s)

    def fail(self, request: Request, message: str) -> None:
        """Tell the rank that its request could not be computed, and why."""
        self._answer(request, SlotState.FAILED, Kind.FAILED, text=message)

    def close(self) -> None:
        """Stop serving: wakes the serving thread and tells the ranks that still wait.

        May be called from any thread and more than once. Memory that a request's tensors still look
        at stays mapped until the last of them is gone.
        """
        self._end("it was told to stop. Start the run again.")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _next(self, order: Order, room: int | None) -> Request | None:
        """Take the request whose turn it is.

        Args:
            order: Is moved on.
            room: None waits for it. Else it is taken only if it is here and has no more tokens.

        Returns:
            None if there is none to take: not yet, or since all have finished, or this end is
            closed.
        """
        with self._lock:
            while not self._closed:
                rank = self._ranks.get(order.rank)
                if rank is not None and rank.finished:
                    if not order.left_out():
                        return None
                elif rank is not None and rank.waiting:
                    request = read_request(order.rank, rank.ring, rank.waiting[0])
                    if room is not None and request.num_tokens > room:
                        return None
                    rank.waiting.popleft()
                    order.took(request)
                    return None if self._closed else request
                elif not self._wait(None if room is None else 0):
                    return None
            return None

    def _wait(self, timeout_ms: int | None) -> bool:
        """Wait until something arrives on any socket, and take it in; False if nothing did.

        Args:
            timeout_ms: None waits for as long as it takes.
        """
        actions: dict[int, Callable[[], None]] = {self._wake.fileno(): self._woken}
        if self._listener is not None:
            actions[self._listener.fileno()] = self._take_in
        for fd, stranger in self._strangers.items():
            actions[fd] = _bind(self._introduced, stranger)
        for number, rank in self._ranks.items():
            if not rank.finished:
                actions[rank.connection.fileno()] = _bind(self._heard, number, rank)
        poll = select.poll()
        for fd in actions:
            poll.register(fd, select.POLLIN)
        events = poll.poll(timeout_ms)
        for fd, _ in events:
            actions[fd]()
        return bool(events)

    def _woken(self) -> None:
        """`close` was called: it takes over as soon as the lock is free."""
        self._closed = True

    def _take_in(self) -> None:
        """Accept a connection; its hello comes as a message of its own."""
        assert self._listener is not None
        connection, _ = self._listener.accept()
        self._strangers[connection.fileno()] = connection

    def _introduced(self, connection: socket.socket) -> None:
        """Read a stranger's hello and make it a rank, or refuse it.

        Raises:
            TransportError: It is one of this user's processes and does not fit this job.
        """
        del self._strangers[connection.fileno()]
        peer = sockets.peer_of(connection)
        if peer.uid != os.getuid():
            # Not the job's fault: somebody else's process cannot end it.
            _send(connection, Message(Kind.REFUSED, text=f"user {peer.uid} is not its own."))
            connection.close()
            return
        try:
            packed, fds, _, _ = socket.recv_fds(
                connection, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            packed, fds = b"", []
        if not packed:  # changed its mind before it said anything
            connection.close()
            return
        try:
            hello = self._checked(Hello.unpack(packed))
            if not fds:
                raise TransportError("The hello of a student came without its ring's memory.")
            fd = fds.pop()
            ring = Ring.attach(
                fd, hello.layout, slots=hello.slots, keep_fd=True, device=hello.device
            )
        except (TransportError, ValueError) as error:
            for fd in fds:
                os.close(fd)
            reason = f"A student (pid {peer.pid}) was refused: {error}"
            # First of all: who was refused may come again at once, to those who listen next.
            self._stop_listening(Message(Kind.ENDED, text=reason))
            _send(connection, Message(Kind.REFUSED, text=str(error)))
            connection.close()
            raise TransportError(reason) from None
        self._ranks[hello.rank] = _Rank(connection, ring, peer.pid)
        _send(connection, Message(Kind.WELCOME))
        if len(self._ranks) == self.world_size:
            text = f"All {self.world_size} ranks are served already. Expected each rank once."
            self._stop_listening(Message(Kind.REFUSED, text=text))

    def _checked(self, hello: Hello) -> Hello:
        """Refuse a rank that does not belong to this job, or expects another teacher."""
        if hello.world_size != self.world_size or not 0 <= hello.rank < self.world_size:
            raise TransportError(
                f"Rank {hello.rank} of {hello.world_size} asked to be served, but the teacher "
                f"serves {self.world_size} ranks, 0 to {self.world_size - 1}. Give both the same "
                "world_size."
            )
        if hello.rank in self._ranks:
            raise TransportError(
                f"Rank {hello.rank} is served already (pid {self._ranks[hello.rank].pid}). "
                "Expected each rank once; give each student its own."
            )
        theirs = (hello.layout.hidden_size, hello.layout.dtype_name)
        if theirs != self._expected:
            hidden_size, dtype_name = self._expected
            raise TransportError(
                f"The slots of rank {hello.rank} are for hidden rows of {theirs[0]} x {theirs[1]}, "
                f"but the teacher's are {hidden_size} x {dtype_name}. Make the layout from the "
                "teacher that serves this job."
            )
        return hello

    def _heard(self, number: int, rank: _Rank) -> None:
        """Read what a rank says.

        Raises:
            TransportError: It died, or says what a student may not.
        """
        packed = sockets.receive(rank.connection)
        if not packed:
            raise TransportError(
                f"Student rank {number} (pid {rank.pid}) died, or its engine was killed. The other "
                "ranks cannot go on without it."
            )
        message = Message.unpack(packed)
        if message.kind in ASKING:
            rank.waiting.append(message)
        elif message.kind is Kind.GOODBYE:
            # What it asked for and will not read is not computed.
            rank.finished = True
            rank.waiting.clear()
            if rank.ring.layout.on_device:
                rank.ring.close()  # its memory may go only when nobody has it open
            rank.connection.close()
        else:
            raise TransportError(
                f"Rank {number} sent {message.kind.name}; expected REQUEST or GOODBYE."
            )

    def _answer(
        self,
        request: Request,
        state: SlotState,
        kind: Kind,
        *,
        seconds: float = 0.0,
        text: str = "",
    ) -> None:
        """Mark the slot and send its handle; nothing to do for a rank that has gone meanwhile."""
        with self._lock:
            rank = self._ranks.get(request.rank)
            if rank is None or rank.finished:
                return
            rank.ring.set_state(request.slot, state)
            _send(rank.connection, Message(kind, request.slot, request.sequence, seconds, text))

    def _end(self, reason: str) -> None:
        """Close everything, once; the ranks that still wait are told the reason."""
        with contextlib.suppress(OSError):
            self._waker.send(b".")
        ended = Message(Kind.ENDED, text=reason)
        with self._lock:
            self._closed = True
            for rank in self._ranks.values():
                if not rank.finished:
                    _send(rank.connection, ended)
                rank.ring.close()  # a student frees a GPU's memory when the connection is closed
                rank.connection.close()
            self._ranks.clear()
            for stranger in self._strangers.values():
                _send(stranger, ended)
                stranger.close()
            self._strangers.clear()
            self._stop_listening(ended)
            self._wake.close()
            self._waker.close()

    def _stop_listening(self, last_word: Message) -> None:
        """Let nobody in any more; whoever stands in the queue hears why, not just a closed door."""
        if self._listener is None:
            return
        Path(self._path).unlink(missing_ok=True)
        self._listener.setblocking(False)
        with contextlib.suppress(OSError):  # BlockingIOError: the queue is empty
            while True:
                connection, _ = self._listener.accept()
                _send(connection, last_word)
                connection.close()
        self._listener.close()
        self._listener = None


def _bind(function: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: function(*arguments)


def _send(connection: socket.socket, message: Message) -> None:
    """Send; whoever is gone is noticed where its messages are read."""
    with contextlib.suppress(OSError):
        connection.send(message.pack(), socket.MSG_NOSIGNAL)
