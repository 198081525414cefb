"""What a run's data asks of its models: tokens of a step and of its largest micro-batch.

Rows are tokenized as the run will do it, and its own order is planned (`kdflow_lab.data.plan`). Of
large data a sample is taken, evenly over the rows. What a student will write is not known before:
on-policy answers count as long as they may become.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdflow_lab import prepare
from kdflow_lab.attention import PackedIndex
from kdflow_lab.data.plan import DataPlan
from kdflow_lab.data.table import tokens_run
from kdflow_lab.lessons import Sizes
from kdflow_lab.on_policy.lessons import PARTS
from kdflow_lab.on_policy.prompts import read_prompts

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import TrainJob
    from kdflow_lab.prepare import Meeting

SAMPLE_ROWS = 2000
"""Rows that are tokenized at most: about a second."""
LEAST_SAMPLE = 200
"""Rows of each of several data sets, at least."""
LOOKED_STEPS = 100
"""Steps whose micro-batches are looked at for the largest."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of rows, Int64[N] each.

    Attributes:
        student: As the student reads them.
        teacher: As the teacher does.
        responses: Trained tokens, the student's.
        asked: Trained tokens, the teacher's: hidden rows that it writes.
        rows: Rows of the whole data, which these are a sample of.
        sources: Which data set each row is of; None for one.
    """

    student: NDArray[np.int64]
    teacher: NDArray[np.int64]
    responses: NDArray[np.int64]
    asked: NDArray[np.int64]
    rows: int
    sources: NDArray[np.int64] | None = None

    @property
    def longest(self) -> NDArray[np.int64]:
        """On the side that has more tokens."""
        return np.maximum(self.student, self.teacher)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One run's.

    Attributes:
        rows: Of the data.
        sampled: Rows that were tokenized.
        steps: Of the run.
        micro_batches: Of a step and rank, on average.
        tokens: That all students run in a step, on average, prompts included.
        teacher_tokens: That the teacher runs for it.
        responses: Trained tokens of a step.
        asked: Hidden rows of a step.
        largest_tokens: Student's, of the largest micro-batch.
        largest_padded: Places of its attention, padding included.
        largest_responses: Trained tokens of the micro-batch that has most.
        largest_teacher_tokens: As the teacher reads the largest.
        largest_asked: Hidden rows of the micro-batch that has most.
        squares: Sum of the squared row lengths of a step, for the attention's products.
        sizes: What no micro-batch can exceed: the ring's slots.
        token_bytes: Of the tokens themselves, which every rank holds.
        all_asked: Hidden rows of all data: what a cache keeps.
    """

    rows: int
    sampled: int
    steps: int
    micro_batches: float
    tokens: float
    teacher_tokens: float
    responses: float
    asked: float
    largest_tokens: int
    largest_padded: int
    largest_responses: int
    largest_teacher_tokens: int
    largest_asked: int
    squares: float
    sizes: Sizes
    token_bytes: int
    all_asked: float


def read_lengths(job: TrainJob, config: DistillConfig, met: Meeting) -> Lengths:
    """Tokenize the run's rows, or a sample of them.

    Raises:
        DataError: A row cannot be used, or none is left.
    """
    datasets = [prepare.loaded(source, config) for source in config.sources]
    counts = [len(dataset) for dataset in datasets]
    both = prepare.tokenizers(job)
    parts, rows = [], 0
    for number, (source, dataset, count) in enumerate(
        zip(config.sources, datasets, counts, strict=True)
    ):
        most = max(LEAST_SAMPLE, SAMPLE_ROWS * count // sum(counts))
        if count > most:
            dataset = dataset.select(np.linspace(0, count - 1, most).astype(int).tolist())
        if config.on_policy:
            read = _of_prompts(dataset, config, source.teacher_input, *both, met)
        else:
            table, _ = prepare.tokenized(
                dataset, both, job, config, met, teacher_input=source.teacher_input
            )
            read = _of_table(table)
        rows += max(1, round(count * len(read[0]) / max(1, len(dataset))))
        parts.append((*read, np.full(len(read[0]), number)))
    student, teacher, responses, asked, of = (
        np.concatenate(one) for one in zip(*parts, strict=True)
    )
    return Lengths(student, teacher, responses, asked, rows, of)


def _of_prompts(
    dataset: Any,
    config: DistillConfig,
    teacher_input: str | None,
    ours: Any,
    theirs: Any,
    met: Meeting,
) -> tuple[NDArray[np.int64], ...]:
    """Lengths of prompts with the longest answers that can come."""
    prompts, _ = read_prompts(
        dataset,
        ours,
        None if met.pair is None else theirs,
        teacher_input=teacher_input,
        max_length=config.max_length,
        max_new_tokens=config.max_new_tokens,
        on_bad_rows=config.on_bad_rows,
    )
    read = prompts.longest.astype(np.int64) + config.max_new_tokens
    answers = np.full(len(read), config.max_new_tokens, np.int64)
    return read, read, answers, answers


def _of_table(table: TokenTable) -> tuple[NDArray[np.int64], ...]:
    """Lengths of rows as both models read them."""
    asked = table.asked
    return table.lengths, asked.lengths, table.response_lengths, asked.response_lengths


def workload(lengths: Lengths, config: DistillConfig, students: int) -> Workload:
    """Plan the run's first steps and measure their micro-batches.

    Args:
        lengths: From `read_lengths`.
        config: The run's budgets.
        students: Number of ranks.

    Raises:
        DataError: A row is longer than a micro-batch may be.
    """
    budget = config.micro_batch_tokens
    run = tokens_run(lengths.longest)
    if config.on_policy:
        step_tokens = float(run.mean()) * config.batch_size
        budget = min(budget, max(math.ceil(step_tokens / (students * PARTS)), int(run.max())))
    plan = DataPlan(
        lengths.longest,
        lengths.responses,
        asked_lengths=lengths.asked,
        batch_size=config.batch_size,
        world_size=students,
        micro_batch_tokens=budget,
        micro_batch_rows=config.micro_batch_rows,
        seed=config.seed,
        sources=lengths.sources,
        weights=config.weights,
    )
    per_epoch = lengths.rows / config.batch_size
    steps = config.steps or max(1, round((config.epochs or 1.0) * per_epoch))
    looked = range(min(steps, LOOKED_STEPS))
    plans = [plan.step(index) for index in looked]
    batches = [rows for one in plans for by_rank in one.micro_batches for rows in by_rank if rows]
    ours, theirs = tokens_run(lengths.student), tokens_run(lengths.teacher)
    largest = max(batches, key=lambda rows: int(ours[rows].sum()))
    sizes = Sizes(plan.max_tokens(), plan.max_sequences(), plan.max_rows())
    count = len(plans)
    return Workload(
        rows=lengths.rows,
        sampled=len(lengths.student),
        steps=steps,
        micro_batches=sum(len(one.micro_batches) for one in plans) / count,
        tokens=sum(float(ours[list(one.rows)].sum()) for one in plans) / count,
        teacher_tokens=sum(float(theirs[list(one.rows)].sum()) for one in plans) / count,
        responses=sum(one.num_valid_tokens for one in plans) / count,
        asked=sum(float(lengths.asked[list(one.rows)].sum()) for one in plans) / count,
        largest_tokens=int(ours[largest].sum()),
        largest_padded=padded(ours[largest]),
        largest_responses=max(int(lengths.responses[rows].sum()) for rows in batches),
        largest_teacher_tokens=max(int(theirs[rows].sum()) for rows in batches),
        largest_asked=max(int(lengths.asked[rows].sum()) for rows in batches),
        squares=sum(float((ours[list(one.rows)] ** 2).sum()) for one in plans) / count,
        sizes=sizes,
        token_bytes=round(float(lengths.student.mean()) * lengths.rows * 5),
        all_asked=float(lengths.asked.mean()) * lengths.rows,
    )


def padded(lengths: Sequence[int] | NDArray[np.int64]) -> int:
    """Places that the attention of packed rows has, with the padding of its groups."""
    ends = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
    index = PackedIndex.of(torch.from_numpy(ends.astype(np.int32)))
    return sum(group.count * group.width for group in index.groups)
