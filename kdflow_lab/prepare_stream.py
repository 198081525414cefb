"""What a run with `streaming` needs before its first step: its data found, nothing of it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.row_tokens import Handful, RowTokens
from kdflow_lab.data.stream import Cursor, StreamRow, opener, passes
from kdflow_lab.data.stream_tables import Places, StreamTables, TokenStream
from kdflow_lab.errors import DataError
from kdflow_lab.prepare import check_ids, longest_row, tokenizers
from kdflow_lab.streaming import OpenTables, StreamLessons
from kdflow_lab.student.group import made_once

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.datasource import DataSource
    from kdflow_lab.jobs import TrainJob
    from kdflow_lab.prepare import Meeting
    from kdflow_lab.rundir import RunDirectory


def open_stream(
    job: TrainJob, config: DistillConfig, met: Meeting, directory: RunDirectory
) -> StreamLessons:
    """Find the data of a run with `streaming`; every rank learns of an error.

    Raises:
        DataError: There is no such data, it can only be read whole, or the teacher takes no rows of
            `max_length` tokens: how long the rows are, is not known before.
    """
    longest = longest_row(config.max_length, job.teacher)
    if longest < config.max_length:
        raise DataError(
            f"max_length is {config.max_length}, but the teacher takes rows of up to {longest} "
            f"tokens. Lower max_length to {longest}, or raise context_length or mem_fraction of "
            "the lab."
        )

    def make() -> OpenTables:
        mixture = Mixture(config.weights or [1.0])
        opened = [_stream(job, config, met, source) for source in config.sources]
        of_each = [
            {"data": one.name, "split": one.split, "weight": one.weight, "share": round(share, 6)}
            for one, share in zip(config.sources, mixture.shares, strict=True)
        ]
        buffer = config.shuffle_buffer
        directory.event("data", streaming=True, shuffle_buffer=buffer, sources=of_each)

        def open_tables(at: Places) -> StreamTables:
            streams = [
                open_one(number, place)
                for number, (open_one, place) in enumerate(zip(opened, at, strict=True))
            ]
            return StreamTables(streams, mixture, at=at)

        return open_tables

    made: list[OpenTables] = []
    made_once(lambda: made.append(make()))
    return StreamLessons(config, job.place.world_size, directory, made[0] if made else None)


def _stream(
    job: TrainJob, config: DistillConfig, met: Meeting, source: DataSource
) -> Callable[[int, Cursor], TokenStream]:
    """Find one data set, and return what opens it at a place, as number so and so of all."""
    ours, theirs = tokenizers(job)
    tokens = RowTokens(
        ours,
        theirs,
        max_length=config.max_length,
        truncation=config.truncation,
        train_turns=config.train_turns,
        pair=met.pair,
        teacher_input=None if job.teacher is None else source.teacher_input,
    )
    split, rows, seed = source.split or config.split, source.rows, config.seed
    open_rows = opener(source.data, split=split, rows=rows, seed=seed)

    def checked(rows: Sequence[StreamRow]) -> Handful:
        found = tokens(rows)
        if found.table is not None:
            check_ids(found.table, met.student_size, "student")
            check_ids(found.table.asked, met.teacher_size, "teacher")
        return found

    def open_one(number: int, at: Cursor) -> TokenStream:
        rows = passes(
            open_rows,
            shuffle_buffer=config.shuffle_buffer,
            seed=[seed, number],
            at=at,
            name=source.name,
        )
        how = config.on_bad_rows
        return TokenStream(rows, checked, name=source.name, on_bad_rows=how, at=at)

    return open_one
