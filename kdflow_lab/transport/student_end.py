"""A student's end of the ring: asks for hidden states ahead of their use, reads them in place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn

import torch

from kdflow_lab.errors import TransportError
from kdflow_lab.transport import sockets
from kdflow_lab.transport.messages import Hello, Kind, Message
from kdflow_lab.transport.ring import Ring, SlotState

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike

    from kdflow_lab.transport.layout import SlotLayout

_RETRY_S = 0.02
_CLOSE_S = 10.0
"""How long a ring in a GPU waits for the teacher to let go of it."""


class HiddenRows:
    """The teacher's hidden rows of one micro-batch, lying in their slot.

    Attributes:
        step: Step of the data plan.
        index: Micro-batch within the step.
        teacher_s: Seconds that the teacher computed them.
    """

    def __init__(
        self,
        end: StudentEnd,
        slot: int,
        tensor: torch.Tensor,
        step: int,
        index: int,
        seconds: float,
    ) -> None:
        """Made by `StudentEnd.receive`."""
        self.step = step
        self.index = index
        self.teacher_s = seconds
        self._end = end
        self._slot = slot
        self._tensor: torch.Tensor | None = tensor

    @property
    def tensor(self) -> torch.Tensor:
        """dtype[T, H] inside the mapping, in the teacher's dtype; valid until `release`.

        Raises:
            TransportError: It was released: the teacher may be writing other rows there.
        """
        if self._tensor is None:
            raise TransportError(
                f"The hidden rows of step {self.step}, micro-batch {self.index} were released; "
                "their slot may hold other rows by now. Use them before release(), or clone them."
            )
        return self._tensor

    def release(self) -> None:
        """Give the slot back for another request; a second call does nothing."""
        if self._tensor is not None:
            self._tensor = None
            self._end._used(self._slot)


class StudentEnd:
    """Owns one rank's ring and its connection to the teacher; for one thread.

    The slots are the credits: with all of them asked for or unreleased, `can_submit` is False.

    Example:
        >>> end.submit(step=0, index=0, input_ids=ids, cu_seqlens=ends, rows=rows)  # doctest: +SKIP
        >>> hidden = end.receive()  # doctest: +SKIP
        >>> loss = kd_loss(student, hidden.tensor)  # doctest: +SKIP
        >>> hidden.release()  # doctest: +SKIP
    """

    def __init__(
        self,
        socket_path: str,
        *,
        rank: int,
        world_size: int,
        layout: SlotLayout,
        slots: int,
        timeout_s: float = 60.0,
        gpu: int | None = None,
    ) -> None:
        """Allocate the ring, wait for the teacher to listen, and introduce this rank.

        Args:
            socket_path: Where the teacher listens, or will.
            rank: 0 … world_size - 1.
            world_size: Number of student ranks.
            layout: Sizes of a slot; its hidden size and dtype are the teacher's.
            slots: Micro-batches that the teacher may be ahead.
            timeout_s: Seconds to wait for the teacher to take this rank in.
            gpu: torch's number of the device in which the hidden rows shall lie (`cuda_ipc`); None
                for host memory.

        Raises:
            TransportError: No memory, no teacher, or a teacher that refuses this rank.
        """
        self.rank = rank
        self.layout = layout = dataclasses.replace(layout, on_device=gpu is not None)
        self.slots = slots
        self._sequence = 0
        self._free = deque(range(slots))
        self._pending: deque[tuple[int, int]] = deque()  # (slot, sequence), the oldest first
        self._reason = ""  # why the connection is useless
        self._closed = False
        self._ring, fd = Ring.create(layout, slots=slots, gpu=gpu)
        self._socket: socket.socket | None = None
        try:
            deadline = time.monotonic() + timeout_s
            self._socket = _connect(socket_path, deadline, timeout_s)
            self.teacher_pid = sockets.peer_of(self._socket).pid
            hello = Hello(
                rank=rank,
                world_size=world_size,
                slots=slots,
                layout=layout,
                device=self._ring.device,
            )
            self._introduce(hello, fd, deadline, timeout_s)
        except BaseException:
            # No goodbye: a rank that was never there must not pass for one that has finished.
            self._hang_up()
            self.close()
            raise
        finally:
            os.close(fd)

    @property
    def can_submit(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def submit(
        self,
        *,
        step: int,
        index: int,
        input_ids: ArrayLike | torch.Tensor,
        cu_seqlens: ArrayLike | torch.Tensor,
        rows: ArrayLike | torch.Tensor,
        kind: Kind = Kind.REQUEST,
    ) -> None:
        """Ask for the hidden rows of a micro-batch; returns at once.

        Every rank must ask for the same (step, index) in the same order, also where its own
        micro-batch is empty.

        Args:
            step: Step of the data plan.
            index: Micro-batch within the step.
            input_ids: Integer[S] on the CPU, packed without padding.
            cu_seqlens: Integer[n + 1], where each sequence starts, and S.
            rows: Integer[T], positions in [0, S) whose hidden states are wanted.
            kind: `HOLD` or `PHASE` where teacher and students take turns: nothing is answered
                before every rank has asked for the last one of its phase.

        Raises:
            TransportError: No slot is free, the micro-batch does not fit, or the teacher is gone.
        """
        connection = self._connection()
        if not self._free:
            raise TransportError(
                f"All {self.slots} slots of the ring are in use. Receive and release hidden rows "
                "before submitting more, or raise depth."
            )
        slot = self._free[0]
        self._ring.write_request(
            slot,
            sequence=self._sequence + 1,
            step=step,
            micro_batch=index,
            rank=self.rank,
            input_ids=input_ids,
            cu_seqlens=cu_seqlens,
            rows=rows,
        )
        self._sequence += 1
        message = Message(kind, slot, self._sequence)
        try:
            connection.send(message.pack(), socket.MSG_NOSIGNAL)
        except OSError:
            self._fail_as_teacher_said(connection)
        self._free.popleft()
        self._pending.append((slot, self._sequence))

    def receive(self, timeout_s: float | None = None) -> HiddenRows:
        """Wait for the oldest unanswered request.

        Args:
            timeout_s: Seconds to wait; None waits for as long as the teacher lives.

        Raises:
            TransportError: The teacher failed this request (with its own message; the next one may
                work), or it ended or died, or the time is over.
        """
        connection = self._connection()
        if not self._pending:
            raise TransportError("Nothing to receive: no micro-batch was submitted.")
        if not _readable(connection, timeout_s):
            raise TransportError(
                f"The teacher (pid {self.teacher_pid}) has not answered rank {self.rank} within "
                f"{timeout_s:g} s. It may be waiting for another rank's micro-batch."
            )
        message = self._read(connection)
        slot, sequence = self._pending.popleft()
        header = self._ring.header(slot)
        if (message.slot, message.sequence, header.sequence) != (slot, sequence, sequence):
            raise TransportError(
                f"The teacher answered request {message.sequence} in slot {message.slot}; expected "
                f"request {sequence} in slot {slot}. This is a bug of kdflow-lab: please report it."
            )
        if message.kind is Kind.FAILED:
            self._free_slot(slot)
            raise TransportError(
                f"The teacher failed on step {header.step}, micro-batch {header.micro_batch} of "
                f"rank {self.rank}: {message.text}"
            )
        self._ring.start_reading(slot)
        tensor = self._ring.hidden(slot, header.num_rows)
        return HiddenRows(self, slot, tensor, header.step, header.micro_batch, message.seconds)

    def contains(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's bytes lie inside the ring's mapping."""
        return self._ring.contains(tensor)

    def describe(self) -> dict[str, str | int]:
        """Name and sizes of the transport, for the `started` event."""
        return self._ring.describe()

    def close(self) -> None:
        """Say goodbye; tensors that are still held stay readable. A second call does nothing."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(Message(Kind.GOODBYE).pack(), socket.MSG_NOSIGNAL)
                if self.layout.on_device:
                    # The memory of a GPU may go only when the teacher has closed it.
                    _readable_until_gone(self._socket, _CLOSE_S)
            self._hang_up()
        self._closed = True
        self._free.clear()
        self._ring.close()

    def abandon(self) -> None:
        """Leave without a goodbye, as if this rank had died: the teacher ends the whole session."""
        self._hang_up()
        self.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _introduce(self, hello: Hello, fd: int, deadline: float, timeout_s: float) -> None:
        """Send the ring and wait to be taken in."""
        connection = self._connection()
        try:
            socket.send_fds(connection, [hello.pack()], [fd], socket.MSG_NOSIGNAL)
        except OSError:
            self._fail_as_teacher_said(connection)
        if not _readable(connection, max(0.0, deadline - time.monotonic())):
            raise TransportError(
                f"The teacher (pid {self.teacher_pid}) listens, but did not take rank {self.rank} "
                f"in within {timeout_s:g} s. Look whether it is busy or hangs."
            )
        self._read(connection)
        connection.settimeout(None)

    def _read(self, connection: socket.socket) -> Message:
        """Read one message that is no end.

        Raises:
            TransportError: The teacher refuses this rank, has ended, or died.
        """
        packed = sockets.receive(connection)
        if not packed:
            raise self._lost(
                f"The teacher (pid {self.teacher_pid}) died, or its engine was killed. "
                "lab.up() starts it again."
            )
        message = Message.unpack(packed)
        if message.kind is Kind.REFUSED:
            raise self._lost(f"The teacher refused rank {self.rank}: {message.text}")
        if message.kind is Kind.ENDED:
            raise self._lost(f"The teacher stopped serving: {message.text}")
        return message

    def _fail_as_teacher_said(self, connection: socket.socket) -> NoReturn:
        """After a send failed: raise with the reason that the teacher left in the socket."""
        while True:
            self._read(connection)

    def _lost(self, reason: str) -> TransportError:
        """Remember why the connection is useless, and build the error."""
        self._reason = reason
        self._hang_up()
        return TransportError(reason)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise TransportError(self._reason or "This end of the ring is closed.")
        return self._socket

    def _used(self, slot: int) -> None:
        """Take a slot back whose rows were read, or will be by what is queued on the GPU."""
        if not self._closed:
            self._ring.stop_reading(slot)
        self._free_slot(slot)

    def _free_slot(self, slot: int) -> None:
        if not self._closed:
            self._ring.set_state(slot, SlotState.FREE)
            self._free.append(slot)


def _connect(path: str, deadline: float, timeout_s: float) -> socket.socket:
    """Connect as soon as the teacher listens."""
    while True:
        try:
            return sockets.connect(path, timeout_s=max(_RETRY_S, deadline - time.monotonic()))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                raise TransportError(
                    f"No teacher listens at {path} after {timeout_s:g} s "
                    f"({error.strerror or error}). Expected a teacher that serves this job; look "
                    "at its log."
                ) from None
            time.sleep(_RETRY_S)
        except OSError as error:
            raise TransportError(
                f"Cannot connect to the teacher at {path}: {error.strerror}."
            ) from None


def _readable(connection: socket.socket, timeout_s: float | None) -> bool:
    """Wait until something can be read, or the peer is gone."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def _readable_until_gone(connection: socket.socket, timeout_s: float) -> None:
    """Read what the peer still says, until it has closed its end or the time is over."""
    deadline = time.monotonic() + timeout_s
    while _readable(connection, deadline - time.monotonic()):
        if not sockets.receive(connection):
            return
