"""The loss sandbox inside a student engine: final hidden states captured once, looked at often.

The ranks share the rows as in an evaluation. Another look at the same texts and weights, with other
losses, needs neither the models nor the teacher: the heads and the hidden states of the response
tokens are kept in host memory, so that a run that trains later has its whole device.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdflow_lab import registration
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.errors import RunError
from kdflow_lab.evaluate.sandbox_compute import look
from kdflow_lab.evaluate.sandbox_tokens import SandboxPart, TokenLook
from kdflow_lab.evaluate.subject import _Subject, heads_of, hidden_of_both
from kdflow_lab.losses import Head

if TYPE_CHECKING:
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import SubjectJob

KEPT = 8
"""Captures that an engine keeps at most."""
KEPT_BYTES = 1 << 30
"""Of all of them; the newest stays in any case."""
PART_TOKENS = 64
"""Tokens between two reports of progress."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A rank's share of some texts, as far as the losses depend on it; everything on the CPU.

    Attributes:
        student_hidden: Float[T, Hs] of the T response tokens, behind the final norm.
        teacher_hidden: Float[T, Ht], in the teacher's dtype.
        labels: Int64[T], those tokens.
        places: Row of the data and position in it of each of them.
        rows: Row of the data -> the text of each of its tokens.
        tokenizer: Of the student.
    """

    student_hidden: Tensor
    student_head: Head
    teacher_hidden: Tensor
    teacher_head: Head
    labels: Tensor
    places: list[tuple[int, int]]
    rows: dict[int, list[str]]
    tokenizer: Any

    def tensors(self) -> list[Tensor]:
        """Everything that takes memory."""
        weights = (self.student_head.weight, self.teacher_head.weight)
        return [self.student_hidden, self.teacher_hidden, *weights]


Captures = OrderedDict[str, Capture]


def sandbox(
    job: SubjectJob, captures: Captures, on_progress: Callable[[int, int], None]
) -> SandboxPart:
    """Look at this rank's share of the texts through several losses.

    Args:
        job: Its `options` hold `key`, `losses` with their parameters, `registered` (those among
            them that the kernel registered), `temperature`, `top` and `max_length`. With a
            teacher, the texts are captured (again); without, the capture of that key is used.
        captures: Those that this engine holds, oldest first.
        on_progress: Called with (tokens done, tokens in all) of this rank.

    Raises:
        DataError: A row cannot be used.
        ModelError: Model and teacher have different tokenizers.
        TransportError: The teacher failed or died.
        RunError: There is no teacher and no capture.
    """
    options = job.options
    key = options["key"]
    registration.install(options["registered"])
    torch.set_num_threads(job.place.threads)
    if job.teacher is not None:
        _keep(captures, key, _captured(job))
    elif key not in captures:
        raise RunError("The captured hidden states are gone. Call lab.sandbox again.")
    capture = captures[key]
    captures.move_to_end(key)
    device = torch.device(job.place.torch_device)
    heads = capture.student_head.to(device), capture.teacher_head.to(device)
    looks: list[TokenLook] = []
    for start in range(0, len(capture.places), PART_TOKENS):
        part = slice(start, start + PART_TOKENS)
        looks += look(
            capture.student_hidden[part].to(device),
            heads[0],
            capture.teacher_hidden[part].to(device),
            heads[1],
            capture.labels[part].to(device),
            places=capture.places[part],
            losses=options["losses"],
            temperature=options["temperature"],
            top=options["top"],
        )
        on_progress(len(looks), len(capture.places))
    texts = token_texts(capture.tokenizer, _ids_of(looks))
    return SandboxPart(looks=looks, rows=capture.rows, texts=texts)


def _captured(job: SubjectJob) -> Capture:
    """Run both models over this rank's rows."""
    subject = _Subject(job)
    table, _ = tokenize(
        subject.dataset,
        subject.tokenizer,
        max_length=job.options["max_length"],
        truncation="error",
    )
    head, teacher_head = heads_of(subject, job)
    ours, theirs, labels = [], [], []
    places: list[tuple[int, int]] = []
    rows: dict[int, list[str]] = {}
    for batch, hidden, teacher_hidden in hidden_of_both(subject, job, table):
        # clones: the ring's slot is about to hold other rows
        ours.append(hidden.detach().to("cpu", copy=True))
        theirs.append(teacher_hidden.detach().to("cpu", copy=True))
        labels.append(batch.labels)
        places += _places(batch, table)
        for row in batch.data_rows:
            ids = table.row(row)[0].tolist()
            texts = token_texts(subject.tokenizer, ids)
            rows[int(table.row_index[row])] = [texts[token_id] for token_id in ids]
    width = {"student": head.weight.shape[1], "teacher": teacher_head.weight.shape[1]}
    return Capture(
        student_hidden=torch.cat(ours) if ours else torch.zeros(0, width["student"]),
        student_head=_detached(head),
        teacher_hidden=torch.cat(theirs) if theirs else torch.zeros(0, width["teacher"]),
        teacher_head=_detached(teacher_head),
        labels=torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64),
        places=places,
        rows=rows,
        tokenizer=subject.tokenizer,
    )


def _detached(head: Head) -> Head:
    """The head alone, on the CPU: nothing of it holds the rest of its model."""
    head = head.to("cpu")
    bias = None if head.bias is None else head.bias.detach()
    return dataclasses.replace(head, weight=head.weight.detach(), bias=bias)


def _places(batch: MicroBatch, table: TokenTable) -> list[tuple[int, int]]:
    """Row of the data, and position in that row, of each label of a micro-batch."""
    starts = batch.cu_seqlens[:-1].long()
    which = torch.searchsorted(starts, batch.rows, right=True) - 1
    positions = batch.rows - starts[which] + 1  # a token is predicted by the one before it
    chosen = [int(table.row_index[batch.data_rows[number]]) for number in which.tolist()]
    return list(zip(chosen, positions.tolist(), strict=True))


def _keep(captures: Captures, key: str, capture: Capture) -> None:
    """Add a capture, and drop the oldest beyond what is kept."""
    for other in captures.values():
        held, head = other.teacher_head, capture.teacher_head
        if held.weight.shape == head.weight.shape:  # a lab has one teacher
            head = dataclasses.replace(head, weight=held.weight, bias=held.bias)
            capture = dataclasses.replace(capture, teacher_head=head)
    captures[key] = capture
    captures.move_to_end(key)
    while len(captures) > 1 and (len(captures) > KEPT or _bytes(captures) > KEPT_BYTES):
        captures.popitem(last=False)


def _bytes(captures: Captures) -> int:
    """Memory that they take together; what several share counts once."""
    tensors = {t.data_ptr(): t.nbytes for one in captures.values() for t in one.tensors()}
    return sum(tensors.values())


def _ids_of(looks: Iterable[TokenLook]) -> set[int]:
    """Every token that is named."""
    found: set[int] = set()
    for one in looks:
        found.update((one.token_id, *one.candidates.ids))
        for pushes in (*one.up.values(), *one.down.values()):
            found.update(push.token_id for push in pushes)
    return found


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of tokens by id; where a token is no whole character, its name in the vocabulary."""
    texts = {}
    for token_id in set(ids):
        name = tokenizer.convert_ids_to_tokens(token_id)
        text = tokenizer.decode([token_id])
        if not text or "\ufffd" in text:
            text = str(name)
        elif isinstance(name, str) and name.startswith("\u2581") and not text[0].isspace():
            text = f" {text}"  # sentencepiece drops the space of what it takes for a beginning
        texts[token_id] = text
    return texts
