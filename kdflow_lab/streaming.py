"""Lessons from data that is read as it is needed: rank 0 reads ahead, and all ranks get the tokens.

Steps come in chunks. While the ranks learn from one chunk they hold the next one, so that the
teacher can be asked across the border, and rank 0 reads the one behind that in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.data.stream import Cursor
from kdflow_lab.data.stream_tables import Chunk, Places, StreamTables
from kdflow_lab.data.table import TokenTable
from kdflow_lab.lessons import Lesson, OffPolicyLessons, Sizes, plan_of
from kdflow_lab.student.group import MEET_S, share, share_arrays

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.rundir import RunDirectory

CHUNK_ROWS = 256
"""Rows of a chunk, about: enough that a meeting of the ranks for them is rare."""

OpenTables = Callable[[Places], StreamTables]
"""Opens the run's streams at some places."""


class StreamLessons(OffPolicyLessons):
    """The lessons of a run with `streaming`; see `kdflow_lab.lessons.Lessons`.

    Step i has the rows [i * batch_size, (i + 1) * batch_size) of the streams, on any number of
    ranks. Where each stream goes on behind a step depends on how many of its rows could not be
    used, so that it is saved with the checkpoint of that step.
    """

    steps_per_epoch = float("inf")

    def __init__(
        self,
        config: DistillConfig,
        world_size: int,
        directory: RunDirectory,
        open_tables: OpenTables | None,
    ) -> None:
        """Take a run's options; nothing is read before the first `prepare`.

        Args:
            config: Batch, budgets and seed are read here.
            world_size: Number of ranks.
            directory: The run's, where rank 0 says what is to be said.
            open_tables: On rank 0; None on the others.
        """
        self._config, self._world_size, self._directory = config, world_size, directory
        self._open = open_tables
        self._steps = max(1, CHUNK_ROWS // config.batch_size)
        self._reader = ThreadPoolExecutor(1, "stream") if open_tables else None
        self._reading: Future[Chunk] | None = None
        self._streams: StreamTables | None = None
        self._tables: dict[int, TokenTable] = {}  # by the first step of their chunk
        self._lessons: dict[int, Lesson] = {}
        self._states: dict[int, Places] = {}
        self._next = 0  # the first step that is not there yet
        self.sizes = self._sizes()
        self.begin(0, None)

    def _sizes(self) -> Sizes:
        """What no micro-batch can exceed, whatever comes."""
        config = self._config
        rows = min(config.batch_size, config.micro_batch_rows or config.batch_size)
        tokens = min(config.micro_batch_tokens, rows * (config.max_length - 1))
        return Sizes(tokens=tokens, sequences=min(rows, tokens), rows=tokens)

    def begin(self, step: int, state: Mapping[str, Any] | None) -> None:
        """See `Lessons.begin`; a state of other data is not followed, and that is said."""
        self._next = step
        if self._open is None:
            return
        at = tuple(Cursor() for _ in self._config.sources)
        if state is not None and state.get("of") == self._identity():
            at = tuple(Cursor(*place) for place in state["places"])
        elif step:
            why = "was of other data" if state is not None else "does not say where its data is"
            self._directory.event(
                "warning",
                message=f"The checkpoint of step {step} {why}: the stream begins at its start.",
            )
        self._states = {step: at}

    def _identity(self) -> dict[str, Any]:
        """What places in the streams depend on."""
        config = self._config
        names = [[one.data, one.split, one.rows] for one in config.sources]
        return {"data": names, "seed": config.seed, "shuffle_buffer": config.shuffle_buffer}

    def state(self, step: int) -> dict[str, Any] | None:
        """See `Lessons.state`."""
        if self._open is None:
            return None
        return {"places": [list(place) for place in self._states[step]], "of": self._identity()}

    # -- before every step ------------------------------------------------------------------------

    def prepare(self, step: int) -> None:
        """See `Lessons.prepare`: at the border of a chunk the next one is taken.

        Raises:
            DataError: The data cannot be read, or holds a bad row that is not to be skipped.
        """
        current = max((first for first in self._tables if first <= step), default=step)
        self._tables = {first: one for first, one in self._tables.items() if first >= current}
        self._lessons = {at: one for at, one in self._lessons.items() if at >= step}
        self._states = {at: one for at, one in self._states.items() if at >= step}
        while self._next <= step or (self._is_wanted and max(self._tables) <= step):
            self._receive()

    @property
    def _is_wanted(self) -> bool:
        """Whether the run has steps behind those that are there."""
        return self._next < (self._config.steps or 0)

    def _receive(self) -> None:
        """Share the next chunk, and let rank 0 read the one behind it."""
        reading = None if self._open is None else self._read()
        while not share(None if reading is None else _is_done(reading)):
            pass  # the ranks meet: in one collective they would not wait longer than its timeout
        problem = share(None if reading is None else reading.exception())
        if problem is not None:
            raise problem
        got = None if reading is None else reading.result()
        arrays = share_arrays(None if got is None else got.table.arrays())
        table = TokenTable.from_arrays(arrays) if got is None else got.table
        self._tables[self._next] = table
        self._next += len(table) // self._config.batch_size
        if got is not None:
            self._states |= got.states
            for note in got.notes:
                self._directory.event(note["event"], **note["fields"])
            if self._is_wanted:
                self._reading = self._read()

    def _read(self) -> Future[Chunk]:
        """Read the next chunk in the thread, unless it is being read."""
        reading, self._reading = self._reading, None
        if reading is not None:
            return reading
        assert self._reader is not None
        steps = min(self._steps, (self._config.steps or 0) - self._next)
        return self._reader.submit(self._chunk, self._next, steps, self._states[self._next])

    def _chunk(self, first: int, steps: int, at: Places) -> Chunk:
        """In the thread: read the rows of some steps."""
        if self._streams is None:
            assert self._open is not None
            self._streams = self._open(at)
        return self._streams.chunk(first, steps, self._config.batch_size)

    def lesson(self, step: int) -> Lesson | None:
        """See `Lessons.lesson`."""
        if step in self._lessons:
            return self._lessons[step]
        first = max((one for one in self._tables if one <= step), default=None)
        if first is None or step >= self._next:
            return None
        size = self._config.batch_size
        start = (step - first) * size
        table = self._tables[first].take(np.arange(start, start + size))
        plan = plan_of(table, self._config, self._world_size, size).step(0)
        self._lessons[step] = Lesson(table, plan)
        return self._lessons[step]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)


def _is_done(reading: Future[Chunk]) -> bool:
    """Wait a little for what is being read."""
    return bool(wait([reading], MEET_S).done)
