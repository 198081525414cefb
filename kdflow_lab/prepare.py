"""What a run needs before its first step: tokens on every rank, and the teacher's head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from kdflow_lab import algorithms
from kdflow_lab.align.shared_vocab import difference, shared_vocabulary
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import sources
from kdflow_lab.data.both import tokenize_for_both
from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.several import Several
from kdflow_lab.data.stream import first_rows
from kdflow_lab.data.table import join, of_source
from kdflow_lab.data.tokens import Report, TokenTable
from kdflow_lab.datasource import DataSource
from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.answers import Questions
from kdflow_lab.jobs import TeacherInfo, TrainJob
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head, head_rows
from kdflow_lab.on_policy.prompts import Prompts, join_prompts, read_prompts
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.group import made_once, share_arrays

if TYPE_CHECKING:
    from datasets import Dataset

STREAM_SAMPLE = 2048
"""Rows of a stream that are read where all rows of other data are."""
ArraysT = TypeVar("ArraysT", TokenTable, Prompts)
DEFAULT_ALGORITHMS = ("vanilla_kd", "byte_prefix")
"""What `auto` is where both models have one tokenizer, and where they have two."""


@dataclass(frozen=True)
class Meeting:
    """How student and teacher understand each other.

    Attributes:
        algorithm: Name of the algorithm that the run takes.
        student_size: Ids 0 … student_size - 1 of the student's head are tokens that can come.
        teacher_size: Likewise of the teacher's.
        pair: Both vocabularies where the algorithm crosses tokenizers, else None.
        note: What was decided, in words; empty if nothing needs to be said.
        differs: How the tokenizers differ; empty if they do not.
    """

    algorithm: str
    student_size: int
    teacher_size: int
    pair: TokenizerPair | None = None
    note: str = ""
    differs: str = ""


def shared_meeting(job: TrainJob, config: DistillConfig, directory: RunDirectory) -> Meeting:
    """Compare the tokenizers on rank 0, and let every rank know; an event says what was decided.

    Raises:
        ModelError: The tokenizers differ, and the algorithm that was asked for cannot cross them.
    """

    def make() -> Meeting:
        met = meeting(job, config.algorithm)
        if met.note:
            directory.event("warning", message=met.note)
        return met

    return made_once(make)


def meeting(job: TrainJob, asked: str) -> Meeting:
    """Compare the tokenizers of teacher and student, and choose the algorithm if it is `auto`.

    Raises:
        ModelError: The tokenizers differ, and the algorithm that was asked for cannot cross them.
    """
    student_rows = head_rows(job.student_path)
    if job.teacher is None:
        return Meeting(asked, student_rows, student_rows)
    ours, theirs = tokenizers(job)
    teacher_rows = head_rows(job.teacher.path)
    differs = difference(theirs, ours)
    name = DEFAULT_ALGORITHMS[bool(differs)] if asked == "auto" else asked
    if not algorithms.crosses_tokenizers(name):
        shared = shared_vocabulary(
            theirs,
            ours,
            teacher_rows=teacher_rows,
            student_rows=student_rows,
            differs=differs,
        )
        return Meeting(name, shared.size, shared.size, note=shared.note, differs=differs)
    pair = TokenizerPair.of(theirs, ours)
    note = ""
    if differs:
        note = (
            f"Teacher and student have different tokenizers ({differs}), so they are distilled by "
            f"{name}: {len(pair.shared[1]):,} of the teacher's {len(pair.teacher):,} tokens write "
            "the same bytes as one of the student's, or have the same role."
        )
    student_size = min(len(pair.student), student_rows)
    teacher_size = min(len(pair.teacher), teacher_rows)
    return Meeting(name, student_size, teacher_size, pair, note, differs)


def tokenizers(job: TrainJob) -> tuple[Any, Any]:
    """Load the student's tokenizer and the teacher's; without a teacher, the student's twice."""
    trust = job.trust_remote_code
    ours = load_tokenizer(job.student_path, trust_remote_code=trust)
    if job.teacher is None:
        return ours, ours
    return ours, load_tokenizer(job.teacher.path, trust_remote_code=trust)


def shared_tokens(
    job: TrainJob, config: DistillConfig, met: Meeting, directory: RunDirectory
) -> TokenTable:
    """Tokenize on rank 0 and give every rank the tokens; every rank learns of an error.

    Raises:
        DataError: A row cannot be used, or none is left.
    """

    def make() -> TokenTable:
        several = tokenized_data(job, config, met)
        directory.event("data", **several.summary())
        return several.table

    return _shared(make, TokenTable)


def tokenized_data(job: TrainJob, config: DistillConfig, met: Meeting) -> Several:
    """Read and tokenize all data sets of a run as both models read them.

    Raises:
        DataError: A row cannot be used, none is left, or one is too long for the teacher; or the
            data is to be streamed, and this reads it whole.
    """
    if config.streaming:
        raise DataError(
            "A stream is never read whole, and this needs all rows. Leave streaming out, and take "
            "rows=… of large data."
        )
    several, both = Several(config), tokenizers(job)
    for source in config.sources:
        dataset = loaded(source, config)
        try:
            table, report = tokenized(
                dataset, both, job, config, met, teacher_input=source.teacher_input
            )
        except DataError as error:
            if len(config.sources) == 1:
                raise
            raise DataError(f"{source.name}: {error}") from None
        several.add(table, report)
    _check_lengths(several.table.asked, job.teacher)
    return several


def shared_held_out(job: TrainJob, config: DistillConfig, met: Meeting) -> TokenTable:
    """Tokenize the held-out rows, likewise; rows that are too long or malformed are left out.

    Without `eval_data` they come from all data sets of the run, by their weights (else as many of
    each), at least one of each.
    """

    def make() -> TokenTable:
        held, first, both = [], 0, tokenizers(job)
        for number, (source, rows) in enumerate(_held_out(config)):
            dataset = loaded(source, config, held_out=rows)
            table, _ = _tokenized(
                dataset,
                both,
                job,
                config,
                met,
                teacher_input=source.teacher_input,
                on_bad_rows="skip",
                truncation="drop",
            )
            held.append(of_source(table, number, first_row=first))
            first += len(dataset)
        return join(held)

    return _shared(make, TokenTable)


def shared_questions(job: TrainJob, config: DistillConfig, table: TokenTable) -> Questions:
    """Read what the rows of `shared_held_out` ask, likewise; plain text asks nothing."""

    def make() -> Questions:
        ours = load_tokenizer(job.student_path, trust_remote_code=job.trust_remote_code)
        found, first = Questions([], []), 0
        for source, rows in _held_out(config):
            dataset = loaded(source, config, held_out=rows)
            own = table.row_index - first
            own = own[(own >= 0) & (own < len(dataset))]
            found = found.with_those_of(dataset.select(own.tolist()), ours)
            first += len(dataset)
        return found

    return made_once(make)


def shared_prompts(
    job: TrainJob, config: DistillConfig, met: Meeting, directory: RunDirectory
) -> Prompts:
    """Tokenize the prompts of an on-policy run, likewise.

    Raises:
        DataError: A row has no prompt, or none leaves room for an answer.
    """

    def make() -> Prompts:
        ours, theirs = tokenizers(job)
        parts, counted, first = [], [], 0
        for number, source in enumerate(config.sources):
            dataset = loaded(source, config)
            found, left_out = read_prompts(
                dataset,
                ours,
                None if met.pair is None else theirs,
                teacher_input=source.teacher_input,
                max_length=longest_row(config.max_length, job.teacher),
                max_new_tokens=config.max_new_tokens,
                on_bad_rows=config.on_bad_rows,
            )
            check_ids(found.student, met.student_size, "student")
            if found.teacher is not None:
                check_ids(found.teacher, met.teacher_size, "teacher")
            parts.append(found.of_source(number, first_row=first))
            counted.append({"data": source.name, "prompts": len(found), **left_out.summary()})
            first += len(dataset)
        everything = join_prompts(parts)
        directory.event("data", **_all_prompts(counted))
        return everything

    return _shared(make, Prompts)


def _all_prompts(counted: list[dict[str, Any]]) -> dict[str, Any]:
    """What the `data` event says of prompts: of all data sets together, and of each of several."""
    said = {name: value for name, value in counted[0].items() if name != "data"}
    if len(counted) == 1:
        return said
    said = {name: sum((one[name] for one in counted), start=type(said[name])()) for name in said}
    return {**said, "sources": counted}


def loaded(source: DataSource, config: DistillConfig, *, held_out: int | None = None) -> Dataset:
    """Load one data set of a run, of a stream a sample: its first rows.

    Args:
        source: One of `config.sources`.
        config: The run's.
        held_out: So many rows of the split for evaluations instead of those that are trained.

    Raises:
        DataError: It cannot be read.
    """
    if held_out is None:
        split, rows, seed = source.split or config.split, source.rows, config.seed
    else:
        split, rows, seed = config.eval_split, held_out, config.seed + 1
    if config.streaming:
        rows = min(rows or STREAM_SAMPLE, STREAM_SAMPLE)
        return first_rows(source.data, split=split, rows=rows, seed=seed)
    dataset = sources.load(source.data, split=split, rows=rows, seed=seed)
    return dataset if rows is None or len(dataset) <= rows else dataset.select(range(rows))


def _held_out(config: DistillConfig) -> list[tuple[DataSource, int]]:
    """The data sets that held-out rows come from, and how many of each."""
    if config.eval_data is not None:
        source = DataSource(data=config.eval_data, teacher_input=config.teacher_input)
        return [(source, config.eval_rows)]
    sources_ = config.sources
    shares = Mixture(config.weights or [1.0] * len(sources_)).counts(np.array([config.eval_rows]))
    return [(one, max(1, int(rows))) for one, rows in zip(sources_, shares[:, 0], strict=True)]


def tokenized(
    dataset: Any,
    both: tuple[Any, Any],
    job: TrainJob,
    config: DistillConfig,
    met: Meeting,
    *,
    teacher_input: str | None,
) -> tuple[TokenTable, Report]:
    """Tokenize rows of one data set as both models read them in training.

    Args:
        dataset: From `loaded`.
        both: From `tokenizers`.
        job: Of the run.
        config: The run's.
        met: How both models understand each other.
        teacher_input: Of the data set.

    Raises:
        DataError: A row cannot be used, or none is left.
    """
    return _tokenized(
        dataset,
        both,
        job,
        config,
        met,
        teacher_input=teacher_input,
        on_bad_rows=config.on_bad_rows,
        truncation=config.truncation,
        train_turns=config.train_turns,
    )


def _tokenized(
    dataset: Any,
    both: tuple[Any, Any],
    job: TrainJob,
    config: DistillConfig,
    met: Meeting,
    *,
    teacher_input: str | None,
    **options: Any,
) -> tuple[TokenTable, Report]:
    """Tokenize rows as both models read them."""
    table, report = tokenize_for_both(
        dataset,
        *both,
        pair=met.pair,
        teacher_input=None if job.teacher is None else teacher_input,
        max_length=config.max_length,
        **options,
    )
    check_ids(table, met.student_size, "student")
    check_ids(table.asked, met.teacher_size, "teacher")
    return table, report


def teacher_head_of(job: TrainJob, vocab_size: int, device: torch.device) -> Head | None:
    """Read the frozen copy of the teacher's head, in the dtype of its hidden rows."""
    if job.teacher is None:
        return None
    dtype = getattr(torch, job.teacher.dtype)
    return Head.from_pretrained(job.teacher.path, dtype=dtype).to(device).cut(vocab_size)


def check_ids(table: TokenTable, size: int, whose: str) -> None:
    """Refuse token ids that a head does not have.

    Raises:
        DataError: There is one of `size` or more.
    """
    highest = int(table.input_ids.max())
    if highest >= size:
        raise DataError(
            f"The data holds token id {highest}, but the {whose}'s head has only the ids below "
            f"{size} that count. Remove the rows with special tokens that only one model has."
        )


def _check_lengths(table: TokenTable, teacher: TeacherInfo | None) -> None:
    """Refuse at the start what the teacher would refuse in the middle of a run."""
    if teacher is None or teacher.longest is None:
        return
    longest = longest_row(int(table.lengths.max()), teacher)
    row = int(table.lengths.argmax())
    if table.lengths[row] > longest:
        raise DataError(
            f"Row {table.row_index[row]} has {table.lengths[row]} tokens, but the teacher takes "
            f"rows of up to {longest}. Lower max_length to {longest} (truncation says what becomes "
            "of longer rows), or raise context_length or mem_fraction of the lab."
        )


def longest_row(tokens: int, teacher: TeacherInfo | None) -> int:
    """Return so many tokens a row, or fewer where the teacher takes fewer."""
    if teacher is None or teacher.longest is None:
        return tokens
    return min(tokens, teacher.longest + 1)  # a row's last token is not run


def _shared(make: Callable[[], ArraysT], kind: type[ArraysT]) -> ArraysT:
    """Make something of arrays on rank 0 and give it to all, or the error."""
    made: list[ArraysT] = []
    made_once(lambda: made.append(make()))
    arrays = share_arrays(made[0].arrays() if made else None)
    return made[0] if made else kind.from_arrays(arrays)
