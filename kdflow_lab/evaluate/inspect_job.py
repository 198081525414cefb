"""An inspection inside a student engine: both models at every token of some texts.

The ranks share the rows and need no process group. What takes long to load is kept between calls
(`LookedAt`), until a run trains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdflow_lab.algorithms.across import make_across
from kdflow_lab.data import sources
from kdflow_lab.data.both import tokenize_for_both
from kdflow_lab.data.encode import Encoder
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.inspect_ask import MOST_TOKENS, Block, InspectPart, is_sampled
from kdflow_lab.evaluate.inspect_table import cu_seqlens_of, every_token, places, predicted
from kdflow_lab.evaluate.probe_file import ids_in
from kdflow_lab.evaluate.probes import plain
from kdflow_lab.evaluate.sandbox import token_texts
from kdflow_lab.evaluate.sandbox_ask import key_of
from kdflow_lab.evaluate.subject import (
    _Subject,
    heads_of,
    hidden_alone,
    hidden_of_both,
    pair_of,
    teacher_tokenizer,
)
from kdflow_lab.losses import token_statistics
from kdflow_lab.student.fsdp import compare

if TYPE_CHECKING:
    from kdflow_lab.jobs import SubjectJob

KEPT = 2
"""Models that an engine keeps at most: a student and the run that began from it, for one."""


class LookedAt(_Subject):
    """A model with all that its comparison with the teacher needs, ready for any texts."""

    def __init__(self, job: SubjectJob) -> None:
        """Load the model, its tokenizer and both heads.

        Raises:
            ModelError: There is no such model, or its tokenizer cannot be compared.
            RunError: The run has no checkpoint.
        """
        self._load(job)
        self.pair = pair_of(self, job)
        self.head, self.teacher_head = heads_of(self, job, self.pair)
        self.across = make_across(self.pair, self.head.width, self.teacher_head.width)
        self.teacher_tokenizer = teacher_tokenizer(job) if self.pair is not None else None


Models = OrderedDict[str, LookedAt]


def inspect(
    job: SubjectJob, models: Models, on_progress: Callable[[int, int], None]
) -> InspectPart:
    """Look at this rank's share of some texts.

    Args:
        job: Its `options` hold `given` (rows, or None for data with a name), `top` and
            `max_length`.
        models: Those that this engine keeps, oldest first.
        on_progress: Called with (tokens done, tokens in all) of this rank.

    Raises:
        DataError: A row cannot be used.
        ModelError: The model cannot be loaded.
        TransportError: The teacher failed or died.
    """
    torch.set_num_threads(job.place.threads)
    subject = _kept(job, models)
    given, top = job.options["given"], job.options["top"]
    sampled = bool(given) and is_sampled(given[0])
    table = _sampled(given or [], subject, job) if sampled else _tokenized(given, subject, job)
    if len(table.input_ids) > MOST_TOKENS:
        raise DataError(
            f"The texts have {len(table.input_ids):,} tokens together; an inspection takes up to "
            f"{MOST_TOKENS:,}. Pass fewer of them, or lower rows."
        )
    blocks = list(_statistics(subject, job, every_token(table), top, on_progress))
    note = ""
    if table.teacher is not None:
        blocks += _answered(subject, job, table)
    elif sampled and subject.pair is not None:
        note = (
            "The teacher reads other tokens, which sampled ones have no counterparts of: this is "
            "the student alone. Pass the same answers as rows with prompt and completion to "
            "compare."
        )
    said = predicted(table)
    named = {one for arrays in (said, *(values for _, values in blocks)) for one in ids_in(arrays)}
    return InspectPart(said, blocks, token_texts(subject.tokenizer, named), note)


def _kept(job: SubjectJob, models: Models) -> LookedAt:
    """Return the model of a job, loaded if it is not there or has changed since."""
    teacher = "" if job.teacher is None else job.teacher.path
    key = f"{teacher} {key_of(job.model, job.is_run, [])}"
    if key not in models:
        while len(models) >= KEPT:
            models.popitem(last=False)
        models[key] = LookedAt(job)
    models.move_to_end(key)
    return models[key]


def _tokenized(
    given: list[dict[str, Any]] | None, subject: LookedAt, job: SubjectJob
) -> TokenTable:
    """Rows of data, as both models read them."""
    if given is None:
        dataset = sources.load(job.data, split=job.split, rows=job.rows, seed=job.seed)
    else:
        dataset = sources.load(given)
    table, _ = tokenize_for_both(
        dataset,
        subject.tokenizer,
        subject.teacher_tokenizer,
        pair=subject.pair,
        max_length=job.options["max_length"],
        truncation="error",
    )
    return table


def _sampled(given: list[dict[str, Any]], subject: LookedAt, job: SubjectJob) -> TokenTable:
    """Sampled answers behind their prompts: the very ids."""
    texts = iter(
        Encoder(subject.tokenizer).ids([row["prompt"] for row in given if "prompt" in row])
    )
    ids, masks = [], []
    most, width = job.options["max_length"], subject.head.width
    for number, row in enumerate(given):
        prompt = row["prompt_ids"] if "prompt_ids" in row else next(texts)
        whole = np.array([*prompt, *row["ids"]], np.int32)
        if len(whole) > most:
            raise DataError(
                f"Rollout {number} has {len(whole)} tokens, more than max_length={most}."
            )
        if len(whole) < 2 or whole.max() >= width:
            problem = f"token id {whole.max()}" if len(whole) > 1 else "a single token"
            raise DataError(
                f"Rollout {number} has {problem}; expected two tokens or more, with ids below "
                f"{width}, which both models have."
            )
        ids.append(whole)
        masks.append(np.repeat(np.array([0, 1], np.uint8), [len(prompt), len(row["ids"])]))
        masks[-1][0] = 0
    return TokenTable(
        input_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64),
        response_mask=np.concatenate(masks),
        row_index=np.arange(len(ids), dtype=np.int32),
    )


def _statistics(
    subject: LookedAt,
    job: SubjectJob,
    table: TokenTable,
    top: int,
    on_progress: Callable[[int, int], None],
) -> Iterator[Block]:
    """Describe every token of this rank's rows, without the teacher if it reads other tokens."""
    cu_seqlens = cu_seqlens_of(table)
    done, total = 0, int(cu_seqlens[-1]) // subject.world_size
    crosses = subject.pair is not None
    if crosses:
        hidden = ((*both, None) for both in hidden_alone(subject, table))
    else:
        hidden = hidden_of_both(subject, job, table)
    for batch, student_hidden, teacher_hidden in hidden:
        statistics = token_statistics(
            student_hidden,
            subject.head,
            teacher_hidden,
            None if crosses else subject.teacher_head,
            batch.labels.to(subject.device),
            k=top,
        )
        yield places(cu_seqlens, batch.data_rows), plain(statistics)
        done += len(batch.labels)
        on_progress(min(done, total), total)


def _answered(subject: LookedAt, job: SubjectJob, table: TokenTable) -> Iterator[Block]:
    """Forward KL of response tokens where the teacher reads others, NaN at other tokens.

    The ranks share these rows by their lengths on both sides, and not as in `_statistics`.
    """
    cu_seqlens = cu_seqlens_of(table)
    sides = (subject.head, subject.teacher_head)
    for batch, hidden, teacher_hidden in hidden_of_both(subject, job, table):
        tokens = compare(batch, hidden, sides[0], teacher_hidden, sides[1], subject.across)
        kl = torch.full((len(batch.input_ids),), torch.nan)
        kl[batch.rows] = tokens.kd.float().cpu()
        yield places(cu_seqlens, batch.data_rows), {"forward_kl": kl.numpy()}
