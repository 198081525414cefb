"""What a run needs before its first step: tokens on every rank, and the teacher's head."""

from __future__ import annotations

from typing import Any

import torch

from kdflow_lab.align.shared_vocab import SharedVocabulary, shared_vocabulary
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import sources
from kdflow_lab.data.tokens import TokenTable, tokenize
from kdflow_lab.errors import DataError
from kdflow_lab.jobs import TrainJob
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head, head_rows
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.group import made_by_leader, share, share_arrays


def shared_tokens(
    job: TrainJob, config: DistillConfig, directory: RunDirectory
) -> tuple[TokenTable, SharedVocabulary]:
    """Tokenize on rank 0 and give every rank the tokens; every rank learns of an error.

    Raises:
        DataError: A row cannot be used, or none is left.
        ModelError: Teacher and student have different tokenizers.
    """

    def make() -> tuple[TokenTable, SharedVocabulary]:
        shared = _vocabulary(job, directory)
        dataset = sources.load(config.data, split=config.split, rows=config.rows, seed=config.seed)
        table, report = tokenize(
            dataset,
            load_tokenizer(job.student_path, trust_remote_code=job.trust_remote_code),
            max_length=config.max_length,
            on_bad_rows=config.on_bad_rows,
            truncation=config.truncation,
            train_turns=config.train_turns,
        )
        directory.event("data", **report.summary())
        _check_ids(table, shared)
        return table, shared

    return _made_once(make)


def shared_held_out(
    job: TrainJob, config: DistillConfig, vocab_size: int
) -> tuple[TokenTable, SharedVocabulary]:
    """Tokenize the held-out rows, likewise; rows that are too long or malformed are left out."""

    def make() -> tuple[TokenTable, SharedVocabulary]:
        data = config.eval_data or config.data
        dataset = sources.load(
            data, split=config.eval_split, rows=config.eval_rows, seed=config.seed + 1
        )
        if len(dataset) > config.eval_rows:
            dataset = dataset.select(range(config.eval_rows))
        table, _ = tokenize(
            dataset,
            load_tokenizer(job.student_path, trust_remote_code=job.trust_remote_code),
            max_length=config.max_length,
            on_bad_rows="skip",
            truncation="drop",
        )
        shared = SharedVocabulary(vocab_size, "")
        _check_ids(table, shared)
        return table, shared

    return _made_once(make)


def teacher_head_of(job: TrainJob, vocab_size: int, device: torch.device) -> Head | None:
    """Read the frozen copy of the teacher's head, in the dtype of its hidden rows."""
    if job.teacher is None:
        return None
    dtype = getattr(torch, job.teacher.dtype)
    return Head.from_pretrained(job.teacher.path, dtype=dtype).to(device).cut(vocab_size)


def _vocabulary(job: TrainJob, directory: RunDirectory) -> SharedVocabulary:
    """Compare the tokenizers of teacher and student."""
    trust = job.trust_remote_code
    student_rows = head_rows(job.student_path)
    if job.teacher is None:
        return SharedVocabulary(student_rows, "")
    shared = shared_vocabulary(
        load_tokenizer(job.teacher.path, trust_remote_code=trust),
        load_tokenizer(job.student_path, trust_remote_code=trust),
        teacher_rows=head_rows(job.teacher.path),
        student_rows=student_rows,
    )
    if shared.note:
        directory.event("warning", message=shared.note)
    return shared


def _check_ids(table: TokenTable, shared: SharedVocabulary) -> None:
    highest = int(table.input_ids.max())
    if highest >= shared.size:
        raise DataError(
            f"The data holds token id {highest}, but teacher and student share only the ids "
            f"below {shared.size}. Remove the rows with the student's own special tokens."
        )


def _made_once(make: Any) -> tuple[TokenTable, SharedVocabulary]:
    """Make a table on rank 0 and share it, or the error."""
    problem, arrays, shared = None, None, None
    try:
        if made := made_by_leader(make):
            table, shared = made
            arrays = table.arrays()
    except Exception as error:
        problem = error
    problem = share(problem)
    if problem is not None:
        raise problem
    return TokenTable.from_arrays(share_arrays(arrays)), share(shared)
