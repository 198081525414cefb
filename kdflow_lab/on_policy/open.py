"""Bring together what an on-policy run needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdflow_lab.errors import RunError
from kdflow_lab.evaluate.generation import stop_ids
from kdflow_lab.load import load_tokenizer
from kdflow_lab.on_policy.journal import Journal
from kdflow_lab.on_policy.lessons import WrittenLessons
from kdflow_lab.on_policy.watch import Watch
from kdflow_lab.on_policy.written import Writer
from kdflow_lab.rollout.client import RolloutEnd

if TYPE_CHECKING:
    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.jobs import TrainJob
    from kdflow_lab.lessons import DataLessons
    from kdflow_lab.on_policy.prompts import Prompts
    from kdflow_lab.rundir import RunDirectory
    from kdflow_lab.student.fsdp import Across, Student

PATIENCE_S = 120.0
"""How long a run waits at least for a rollout engine to come back; a busy CPU took 49 s."""


@contextlib.contextmanager
def open_lessons(
    job: TrainJob,
    config: DistillConfig,
    pair: TokenizerPair | None,
    prompts: Prompts,
    student: Student,
    data: DataLessons | None,
    *,
    directory: RunDirectory,
    across: Across | None,
) -> Iterator[WrittenLessons]:
    """Connect to the rollout engine for the length of a run; all ranks do so together.

    Args:
        job: This rank's.
        config: What was asked.
        pair: Both vocabularies, if the tokenizers differ.
        prompts: All of them.
        student: Whose weights write.
        data: Rows with answers, if some steps learn from those.
        directory: The run's, where rank 0 writes down what was written.
        across: Compares tokens of two tokenizers; None if there is one.

    Raises:
        TransportError: There is no rollout engine.
        RunError: The run was given no place to meet it.
    """
    place, trust = job.place, job.trust_remote_code
    if place.rollouts is None or job.teacher is None:
        raise RunError("An on-policy run needs a rollout engine and a teacher. Start it by a lab.")
    ours = load_tokenizer(job.student_path, trust_remote_code=trust)
    # two buffers where answers are written while the student learns: a sync then waits for nobody
    buffers = 2 if config.max_staleness else 1
    writer = watch = journal = None
    if place.rank == 0:
        theirs = load_tokenizer(job.teacher.path, trust_remote_code=trust)
        writer = Writer(prompts, pair, ours, theirs, max_tokens=config.micro_batch_tokens)
        watch = Watch(max(1, config.log_rollouts), across)
        journal = Journal(
            directory,
            ours,
            prompts,
            most=config.max_new_tokens,
            sampled=config.sampling_temperature > 0,
            attempt=job.attempt,
            teacher_tokenizer=theirs,
        )
    patience_s = max(config.timeout_s, PATIENCE_S)
    with RolloutEnd(place.rollouts, rank=place.rank, buffers=buffers, patience_s=patience_s) as end:
        yield WrittenLessons(
            prompts,
            writer,
            end,
            student,
            config=config,
            stop_ids=stop_ids(student.model, ours),
            rank=place.rank,
            world_size=place.world_size,
            data=data,
            watch=watch,
            journal=journal,
        )
