"""Looking at a model inside a student engine: scoring it against the teacher, or letting it write.

The model is a plain one, whole on every rank; the ranks share the rows. They need no process group:
all of them make the same plan from the same data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.algorithms.across import make_across
from kdflow_lab.align.shared_vocab import difference, shared_vocabulary
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.attention import decode, use_packed_attention, why_not_packed
from kdflow_lab.data import sources
from kdflow_lab.data.both import tokenize_for_both
from kdflow_lab.data.prompts import prompts, with_answer
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.batches import ask, batches_of, connect, row_sums, share_of
from kdflow_lab.evaluate.generation import generate, stop_ids
from kdflow_lab.evaluate.row import data_of, is_right, response_bytes
from kdflow_lab.load import load_model, load_tokenizer
from kdflow_lab.losses import Head
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.export import load_hf, load_tokenizer_of
from kdflow_lab.student.fsdp import compare

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.jobs import SubjectJob, TeacherInfo

Progress = Callable[[int, int], None]


class _Subject:
    """The model that is looked at, with its data."""

    def __init__(self, job: SubjectJob) -> None:
        torch.set_num_threads(job.place.threads)
        self.dataset: Dataset = sources.load(
            job.data, split=job.split, rows=job.rows, seed=job.seed
        )
        self._load(job)

    def _load(self, job: SubjectJob) -> None:
        """Load the model and its tokenizer."""
        place = job.place
        self.rank, self.world_size = place.rank, place.world_size
        self.device = torch.device(place.torch_device)
        if job.is_run:
            directory = RunDirectory(job.model)
            model = load_hf(directory)
            self.tokenizer = load_tokenizer_of(directory)
        else:
            trust = job.trust_remote_code
            model = load_model(job.model, trust_remote_code=trust)
            self.tokenizer = load_tokenizer(job.model, trust_remote_code=trust)
        self.model: Any = model.eval().to(self.device)
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        self.pad_id = next(token_id for token_id in known if token_id is not None)

    def generate(self, rows: list[int], on_batch: Progress, **options: Any) -> list[list[int]]:
        """Let the model answer rows of the data; token ids without the stop id."""
        asked = prompts(self.dataset.select(rows), self.tokenizer)
        return generate(
            self.model,
            asked,
            pad_id=self.pad_id,
            stop_ids=stop_ids(self.model, self.tokenizer),
            on_batch=on_batch,
            **options,
        )

    def text(self, ids: list[int]) -> str:
        """The text of an answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def score(job: SubjectJob, on_progress: Progress) -> list[dict[str, Any]]:
    """Compare a model with the teacher on this rank's share of the rows.

    Args:
        job: Its `options`: `generate`, `max_new_tokens` and `max_length` of `Lab.evaluate`.
        on_progress: Called with (parts done, parts in all) of this rank.

    Returns:
        The lines of `Evaluation.frame`; where the model wrote answers, each with its row of data in
        `data`.

    Raises:
        DataError: No row can be scored.
        TransportError: The teacher failed or died.
    """
    subject = _Subject(job)
    pair = pair_of(subject, job)
    table, _ = tokenize_for_both(
        subject.dataset,
        subject.tokenizer,
        teacher_tokenizer(job),
        pair=pair,
        max_length=job.options["max_length"],
        truncation="error",
    )
    mine = share_of(table, rank=subject.rank, world_size=subject.world_size).tolist()
    answers: dict[int, str | None] = dict.fromkeys(mine)
    asks = job.options["generate"] and "text" not in subject.dataset.column_names
    total = len(mine) * (2 if asks else 1)
    lines = {}
    for row, line in _score_rows(subject, job, table, pair):
        lines[row] = line
        on_progress(len(lines), total)
    if asks:
        data_rows = [int(table.row_index[row]) for row in mine]
        written = subject.generate(
            data_rows,
            lambda done, _: on_progress(len(mine) + done, total),
            max_new_tokens=job.options["max_new_tokens"],
        )
        answers = {row: subject.text(ids) for row, ids in zip(mine, written, strict=True)}
    return [
        {
            "row": int(table.row_index[row]),
            **lines[row],
            **_judged(subject.dataset[int(table.row_index[row])], answers[row]),
            **({"data": data_of(subject.dataset[int(table.row_index[row])])} if asks else {}),
        }
        for row in mine
    ]


def write(job: SubjectJob, on_progress: Progress) -> list[dict[str, Any]]:
    """Let a model answer this rank's share of the prompts.

    Args:
        job: Its `options`: `temperature` and `max_new_tokens` of `Lab.rollouts`.
        on_progress: Called with (prompts done, prompts in all) of this rank.

    Returns:
        Rows with the model's answer in `messages`, `finished`, and `row`, their place in the data.

    Raises:
        DataError: A row has no prompt.
    """
    subject = _Subject(job)
    if "text" in subject.dataset.column_names:
        raise DataError("Plain text has no prompts to answer. Pass rows with messages or prompts.")
    mine = list(range(subject.rank, len(subject.dataset), subject.world_size))
    longest = job.options["max_new_tokens"]
    written = subject.generate(
        mine,
        on_progress,
        temperature=job.options["temperature"],
        max_new_tokens=longest,
        seed=job.seed * subject.world_size + subject.rank,
    )
    return [
        {
            **with_answer(subject.dataset[row], subject.text(ids)),
            "finished": len(ids) < longest,
            "row": row,
        }
        for row, ids in zip(mine, written, strict=True)
    ]


def _score_rows(
    subject: _Subject, job: SubjectJob, table: TokenTable, pair: TokenizerPair | None
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield this rank's rows with the sums of `row_sums` over their response tokens."""
    head, teacher_head = heads_of(subject, job, pair)
    across = make_across(pair, head.width, teacher_head.width)
    for batch, hidden, teacher_hidden in hidden_of_both(subject, job, table):
        tokens = compare(batch, hidden, head, teacher_hidden, teacher_head, across)
        counts, summed = row_sums(batch, tokens, table)
        for place, row in enumerate(batch.data_rows):
            sums = {name: float(values[place]) for name, values in summed.items()}
            yield int(row), {"tokens": int(counts[place]), **sums}


def pair_of(subject: _Subject, job: SubjectJob) -> TokenizerPair | None:
    """Return the vocabularies of teacher and model; None where they have one tokenizer."""
    theirs = teacher_tokenizer(job)
    different = difference(theirs, subject.tokenizer)
    return TokenizerPair.of(theirs, subject.tokenizer) if different else None


def teacher_tokenizer(job: SubjectJob) -> Any:
    """Load the teacher's tokenizer."""
    return load_tokenizer(_teacher_of(job).path, trust_remote_code=job.trust_remote_code)


def heads_of(
    subject: _Subject, job: SubjectJob, pair: TokenizerPair | None = None
) -> tuple[Head, Head]:
    """Return the model's head and the teacher's, without the rows that stand for no token.

    Without a `pair` both are cut to the ids that the two models share.

    Raises:
        ModelError: Model and teacher have different tokenizers, and there is no `pair`.
    """
    teacher = _teacher_of(job)
    teacher_head = Head.from_pretrained(teacher.path, dtype=getattr(torch, teacher.dtype))
    if pair is not None:
        head = Head.of(subject.model)
        head = head.cut(min(len(pair.student), head.width))
        return head, teacher_head.to(subject.device).cut(min(len(pair.teacher), teacher_head.width))
    shared = shared_vocabulary(
        teacher_tokenizer(job),
        subject.tokenizer,
        teacher_rows=teacher_head.weight.shape[0],
        student_rows=Head.of(subject.model).weight.shape[0],
    )
    head = Head.of(subject.model, shared.size)
    return head, teacher_head.to(subject.device).cut(shared.size)


def hidden_of_both(
    subject: _Subject, job: SubjectJob, table: TokenTable
) -> Iterator[tuple[MicroBatch, torch.Tensor, torch.Tensor]]:
    """Yield this rank's micro-batches, but empty ones, with both models' final hidden states.

    Yields:
        The micro-batch of T response tokens, the model's rows, Float[T, Hs], and the teacher's,
        Float[T, Ht], both on the subject's device; on a CPU the latter lie in the ring, where they
        are valid until the next micro-batch.

    Raises:
        TransportError: The teacher failed or died.
    """
    teacher = _teacher_of(job)
    rank, world_size = subject.rank, subject.world_size
    batches = batches_of(table, rank=rank, world_size=world_size)
    with (
        _packing(subject) as packed,
        connect(
            batches, job.place.socket or "", rank=rank, world_size=world_size, teacher=teacher
        ) as end,
    ):
        for batch, teacher_hidden in ask(batches, end):
            if batch.input_ids.numel():
                hidden = _hidden(subject, batch, packed)
                yield batch, hidden, teacher_hidden.to(subject.device)


def hidden_alone(subject: _Subject, table: TokenTable) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
    """Yield this rank's micro-batches, but empty ones, with the model's hidden states alone.

    Yields:
        The micro-batch of T response tokens, and the model's rows, Float[T, Hs].
    """
    with _packing(subject) as packed:
        for batch in batches_of(table, rank=subject.rank, world_size=subject.world_size):
            if batch.input_ids.numel():
                yield batch, _hidden(subject, batch, packed)


@contextlib.contextmanager
def _packing(subject: _Subject) -> Iterator[bool]:
    """Let the model run rows without padding for a while, if it can; tell whether."""
    packed = not why_not_packed(subject.model)
    own_attention = subject.model.config._attn_implementation
    if packed:
        use_packed_attention(subject.model)
    try:
        yield packed
    finally:
        if packed:
            subject.model.set_attn_implementation(own_attention)


def _teacher_of(job: SubjectJob) -> TeacherInfo:
    """The teacher that a job was given, with the place to meet it."""
    if job.teacher is None or job.place.socket is None:
        raise DataError("Scoring needs the teacher.")
    return job.teacher


@torch.no_grad()
def _hidden(subject: _Subject, batch: MicroBatch, packed: bool) -> torch.Tensor:
    """The model's final hidden states of a micro-batch's response tokens, Float[T, Hs]."""
    return decode(
        subject.model.get_decoder(),
        batch.input_ids.to(subject.device),
        batch.cu_seqlens,
        packed=packed,
        pad_id=subject.pad_id,
    ).index_select(0, batch.rows.to(subject.device))


def _judged(row: dict[str, Any], answer: str | None) -> dict[str, Any]:
    """What stands in a line beside the sums: question, answer, and whether it is right."""
    asked = [one["content"] for one in row.get("messages") or [] if one["role"] == "user"]
    correct = None
    if answer is not None:
        correct = is_right(row, answer)
    return {
        "kind": row.get("kind") or "all",
        "bytes": response_bytes(row),
        "prompt": asked[-1] if asked else row.get("prompt"),
        "answer": answer,
        "correct": correct,
    }
