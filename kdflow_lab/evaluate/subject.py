"""Looking at a model inside a student engine: scoring it against the teacher, or letting it write.

The model is a plain one, whole on every rank; the ranks share the rows. They need no process group:
all of them make the same plan from the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdflow_lab.align.shared_vocab import shared_vocabulary
from kdflow_lab.attention import decode, use_packed_attention, why_not_packed
from kdflow_lab.data import sources
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.prompts import prompts, references, with_answer
from kdflow_lab.data.tokens import TokenTable, tokenize
from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.generation import generate
from kdflow_lab.load import load_model, load_tokenizer
from kdflow_lab.losses import Head, per_token
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student import checkpoint
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.jobs import SubjectJob

Progress = Callable[[int, int], None]
BATCH_TOKENS = 4096
"""Tokens scored at once."""
AHEAD = 2
"""Batches that the teacher may be ahead."""


class _Subject:
    """The model that is looked at, with its data."""

    def __init__(self, job: SubjectJob) -> None:
        place = job.place
        torch.set_num_threads(place.threads)
        self.rank, self.world_size = place.rank, place.world_size
        self.device = torch.device(f"cuda:{place.rank}" if place.device == "cuda" else "cpu")
        self.dataset: Dataset = sources.load(
            job.data, split=job.split, rows=job.rows, seed=job.seed
        )
        if job.is_run:
            directory = RunDirectory(job.model)
            model = checkpoint.load_hf(directory)
            self.tokenizer = checkpoint.load_tokenizer_of(directory)
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
            stop_ids=_stop_ids(self.model, self.tokenizer),
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
        The lines of `Evaluation.frame`.

    Raises:
        DataError: No row can be scored.
        ModelError: Model and teacher have different tokenizers.
        TransportError: The teacher failed or died.
    """
    subject = _Subject(job)
    table, _ = tokenize(
        subject.dataset,
        subject.tokenizer,
        max_length=job.options["max_length"],
        truncation="error",
    )
    # longest first, dealt out in turn: every rank gets as many rows and about as many tokens
    order = np.argsort(-table.lengths, kind="stable")
    mine = [int(row) for row in order[subject.rank :: subject.world_size]]
    answers: dict[int, str | None] = dict.fromkeys(mine)
    asks = job.options["generate"] and "text" not in subject.dataset.column_names
    total = len(mine) * (2 if asks else 1)
    lines = {}
    for row, line in _score_rows(subject, job, table, order):
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
    subject: _Subject, job: SubjectJob, table: TokenTable, order: np.ndarray
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield this rank's rows with the sums of kl, ce and agreement over their response tokens."""
    teacher = job.teacher
    if teacher is None or job.place.socket is None:
        raise DataError("Scoring needs the teacher.")
    teacher_head = Head.from_pretrained(teacher.path, dtype=getattr(torch, teacher.dtype))
    shared = shared_vocabulary(
        load_tokenizer(teacher.path, trust_remote_code=job.trust_remote_code),
        subject.tokenizer,
        teacher_rows=teacher_head.weight.shape[0],
        student_rows=Head.of(subject.model).weight.shape[0],
    )
    teacher_head = teacher_head.to(subject.device).cut(shared.size)
    head = Head.of(subject.model, shared.size)
    packed = not why_not_packed(subject.model)
    own_attention = subject.model.config._attn_implementation
    if packed:
        use_packed_attention(subject.model)
    batches = list(_batches(table, order, subject.rank, subject.world_size))
    layout = SlotLayout(
        max_tokens=max(batch.input_ids.numel() for batch in batches),
        max_sequences=max(len(batch.data_rows) for batch in batches),
        max_rows=max(batch.rows.numel() for batch in batches),
        hidden_size=teacher.hidden_size,
        dtype_name=teacher.dtype,
    )
    with StudentEnd(
        job.place.socket,
        rank=subject.rank,
        world_size=subject.world_size,
        layout=layout,
        slots=AHEAD,
    ) as end:
        feed = TeacherFeed(iter(batches), end)
        for _ in batches:
            batch, hidden = feed.next()
            if hidden is None:
                raise DataError("Scoring needs the teacher.")
            if batch.input_ids.numel():
                sums = _sums(subject, batch, hidden.tensor, head, teacher_head, table, packed)
                yield from zip(map(int, batch.data_rows), sums, strict=True)
            hidden.release()
    if packed:
        subject.model.set_attn_implementation(own_attention)


@torch.inference_mode()
def _sums(
    subject: _Subject,
    batch: MicroBatch,
    teacher_hidden: torch.Tensor,
    head: Head,
    teacher_head: Head,
    table: TokenTable,
    packed: bool,
) -> list[dict[str, float]]:
    """The sums of each row of a micro-batch."""
    hidden = decode(
        subject.model.get_decoder(),
        batch.input_ids.to(subject.device),
        batch.cu_seqlens,
        packed=packed,
        pad_id=subject.pad_id,
    ).index_select(0, batch.rows.to(subject.device))
    tokens = per_token(
        hidden,
        head,
        teacher_hidden.to(subject.device),
        teacher_head,
        batch.labels.to(subject.device),
    )
    counts = table.response_lengths[np.asarray(batch.data_rows, dtype=np.int64)]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    columns = {"kl": tokens.kd, "ce": tokens.ce, "agreement": tokens.agreement}
    summed = {
        name: np.add.reduceat(values.double().cpu().numpy(), starts)
        for name, values in columns.items()
    }
    return [
        {"tokens": int(count), **{name: float(summed[name][row]) for name in columns}}
        for row, count in enumerate(counts)
    ]


def _batches(
    table: TokenTable, order: np.ndarray, rank: int, world_size: int
) -> Iterator[MicroBatch]:
    """Yield a rank's micro-batches; all ranks have as many, the last ones may be empty.

    The teacher serves the ranks in turn, so all must ask for the same numbers of micro-batches.
    """
    shares = [order[other::world_size] for other in range(world_size)]
    cuts = [_cut(table, share) for share in shares]
    for index in range(max(map(len, cuts))):
        rows = cuts[rank][index] if index < len(cuts[rank]) else []
        yield pack(table, rows, step=0, index=index)


def _cut(table: TokenTable, share: np.ndarray) -> list[list[int]]:
    """Cut rows into lists of at most `BATCH_TOKENS` tokens (a longer row is alone)."""
    lists: list[list[int]] = []
    room = 0
    for row in map(int, share):
        length = int(table.lengths[row])
        if not lists or length > room:
            lists.append([])
            room = BATCH_TOKENS
        lists[-1].append(row)
        room -= length
    return lists


def _judged(row: dict[str, Any], answer: str | None) -> dict[str, Any]:
    """What stands in a line beside the sums: question, answer, and whether it is right."""
    asked = [one["content"] for one in row.get("messages") or [] if one["role"] == "user"]
    correct = None
    if answer is not None:
        correct = answer.strip() in [text.strip() for text in references(row)]
    return {
        "kind": row.get("kind") or "all",
        "prompt": asked[-1] if asked else row.get("prompt"),
        "answer": answer,
        "correct": correct,
    }


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's and those of the generation config."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})
