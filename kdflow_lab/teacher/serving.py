"""How a teacher serves one job: its micro-batches in one thread, evaluations aside in another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from kdflow_lab.beats import Beats
from kdflow_lab.errors import TransportError
from kdflow_lab.teacher.base import serve
from kdflow_lab.teacher.weights import WeightServing
from kdflow_lab.transport.teacher_end import TeacherEnd

if TYPE_CHECKING:
    from typing import Self

    from kdflow_lab.teacher.base import Teacher
    from kdflow_lab.teacher.weights import Follower


class Turns:
    """A lock that whoever waits for it gets next.

    With a plain lock, a thread that lets go and asks again at once is mostly faster than one that
    sleeps: a full training ring would keep an evaluation out. Here the next in turn already stands
    in the door.
    """

    def __init__(self) -> None:
        """Nobody's turn yet."""
        self._door, self._inside = threading.Lock(), threading.Lock()

    def __enter__(self) -> Self:
        """Wait for the turn."""
        with self._door:
            self._inside.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the next one in."""
        self._inside.release()


class Serving:
    """Two threads that share one teacher; made to serve one job, then closed.

    The ring of a training is full of requests for later micro-batches, in strict order, so an
    evaluation between two steps has a meeting point of its own. There one session follows another:
    all ranks connect, ask, and leave. Sessions and training take turns micro-batch by micro-batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        path: str,
        aside: str | None,
        *,
        world_size: int,
        threads: int,
        weights: str | None = None,
    ) -> None:
        """Listen at both paths and start to serve.

        Args:
            teacher: Is called by one thread at a time.
            path: Socket of the job's micro-batches.
            aside: Socket of its evaluations; None for none.
            world_size: Students of the job, which take part in every session.
            threads: CPU threads of the teacher's matrix products.
            weights: Socket of the weights of a teacher that follows the student, a `Follower`;
                None for one that stays as it is.

        Raises:
            TransportError: A socket cannot be made.
        """
        self._teacher = teacher
        self._aside = aside
        self._world_size = world_size
        self._turns = Turns()
        self._lock = threading.Lock()  # around `_session` and `_closed`
        self._closed = False
        self._session: TeacherEnd | None = None
        self._training = TeacherEnd(path, world_size=world_size)
        self._weights: WeightServing | None = None
        try:
            if weights is not None:
                follower = cast("Follower", teacher)
                self._weights = WeightServing(follower, weights, self._turns, threads=threads)
            self._next_session()
        except TransportError:
            if self._weights is not None:
                self._weights.close()
            self._training.close()
            raise
        self._threads = [
            threading.Thread(target=work, args=(threads,), name=name, daemon=True)
            for name, work in (("serve", self._serve_training), ("aside", self._serve_aside))
        ]
        self._beats = Beats(Path(path).parent, "teacher")
        self._beats.__enter__()
        for thread in self._threads:
            thread.start()

    @property
    def follows(self) -> bool:
        """Whether the teacher takes the students' weights."""
        return self._weights is not None

    def close(self) -> None:
        """End both threads and leave no socket behind; students that wait are told.

        Waits for the micro-batches that the teacher is computing, at most one of each thread. A
        second call does nothing.
        """
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()
        self._training.close()
        if self._weights is not None:
            self._weights.close()
        for thread in self._threads:
            thread.join()
        self._beats.__exit__()

    def _serve_training(self, threads: int) -> None:
        torch.set_num_threads(threads)
        with self._training:
            serve(self._teacher, self._training, self._turns)

    def _serve_aside(self, threads: int) -> None:
        """Serve sessions until `close`; one whose student died or was refused ends alone."""
        torch.set_num_threads(threads)
        session = self._session
        while session is not None:
            with session:
                serve(self._teacher, session, self._turns, aside=True)
            try:
                session = self._next_session()
            except TransportError:  # the path is taken or its folder gone: students cannot connect
                return

    def _next_session(self) -> TeacherEnd | None:
        """Listen for the next session; None if there is to be none."""
        with self._lock:
            self._session = None
            if self._aside is not None and not self._closed:
                self._session = TeacherEnd(self._aside, world_size=self._world_size)
            return self._session
