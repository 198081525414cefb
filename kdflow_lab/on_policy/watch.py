"""A look at the first answers of a step while student and teacher are at it: token by token.

Everything that is needed (both models' rows, the student's whole head) exists only while the loss
is computed, so that is where the look is taken; it costs the head products of a few answers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdflow_lab.align.pairing import Pairing, covering, one_to_one
from kdflow_lab.losses import token_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.losses import Head
    from kdflow_lab.student.fsdp import Across

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What was seen of the first answers of a step.

    T tokens of the student, U of the teacher; the same where they have one tokenizer.

    Attributes:
        data_rows: Rows of the step's table that were looked at.
        lengths: Tokens of the student of each.
        ids: Int64[T], the student's tokens.
        kl: Float32[T], KL(teacher || student) in nats; NaN at tokens that cannot be compared.
        student_entropy: Float32[T], nats.
        student_logprob: Float32[T], nats.
        teacher_entropy: Float32[U], nats.
        teacher_logprob: Float32[U], nats: what the teacher thinks of the tokens as it reads them.
        teacher_lengths: Tokens of the teacher of each row.
        teacher_width: Columns of the teacher's head: ln of it is the largest entropy.
        teacher_top: Int64[T], the token that the teacher, in its own ids, finds likeliest in the
            place of each; -1 where none of its tokens begins.
        teacher_top_logprob: Float32[T], nats; NaN where `teacher_top` is -1.
        teacher_label_logprob: Float32[T], nats: what the teacher thinks of the student's token; NaN
            where it has no token of just that text.
    """

    data_rows: tuple[int, ...]
    lengths: tuple[int, ...]
    ids: NDArray[np.int64]
    kl: Floats
    student_entropy: Floats
    student_logprob: Floats
    teacher_entropy: Floats
    teacher_logprob: Floats
    teacher_lengths: tuple[int, ...]
    teacher_width: int
    teacher_top: NDArray[np.int64]
    teacher_top_logprob: Floats
    teacher_label_logprob: Floats


class Watch:
    """Looks at a step's first rows; `Student.watch` calls it on rank 0, a micro-batch at a time."""

    def __init__(self, rows: int, across: Across | None) -> None:
        """Look at the first `rows` rows; `across` compares tokens of two tokenizers."""
        self._rows, self._across = rows, across
        self._seen: list[Seen] = []

    @torch.no_grad()
    def __call__(
        self,
        batch: MicroBatch,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
    ) -> None:
        """Look at as many rows of a micro-batch as the step has left to be looked at."""
        if not batch.index:
            self._seen = []
        left = self._rows - sum(len(seen.data_rows) for seen in self._seen)
        if left < 1 or not batch.data_rows or teacher_hidden is None or teacher_head is None:
            return
        lengths = _lengths(batch.cu_seqlens, batch.rows)[:left]
        teacher_lengths = _lengths(batch.asked.cu_seqlens, batch.asked.rows)[:left]
        student_hidden = student_hidden[: sum(lengths)].detach()
        teacher_hidden = teacher_hidden[: sum(teacher_lengths)]
        labels = batch.labels[: sum(lengths)].to(student_hidden.device)
        if batch.pairing is None or self._across is None:
            both = token_statistics(
                *(student_hidden, student_head, teacher_hidden, teacher_head, labels),
                k=1,
                divergences=("forward_kl",),
            )
            kl = both["forward_kl"]
            begins = same = np.arange(sum(lengths))
        else:
            theirs = batch.asked.labels[: sum(teacher_lengths)].to(teacher_hidden.device)
            both = token_statistics(student_hidden, student_head, None, None, labels, k=1)
            alone = token_statistics(teacher_hidden, teacher_head, None, None, theirs, k=1)
            both |= {name.replace("student_", "teacher_"): values for name, values in alone.items()}
            pairing = _first(batch.pairing, sum(lengths), sum(teacher_lengths))
            kl = self._across.per_token(
                student_hidden, student_head, teacher_hidden, teacher_head, labels, pairing
            ).kd
            begins, same = _counterparts(pairing)
        seen = Seen(
            data_rows=batch.data_rows[:left],
            lengths=tuple(lengths),
            ids=labels.cpu().numpy(),
            kl=_array(kl),
            student_entropy=_array(both["student_entropy"]),
            student_logprob=_array(both["student_logprob"]),
            teacher_entropy=_array(both["teacher_entropy"]),
            teacher_logprob=_array(both["teacher_logprob"]),
            teacher_lengths=tuple(teacher_lengths),
            teacher_width=teacher_head.width,
            teacher_top=_taken(both["teacher_topk_ids"][:, 0].long().cpu().numpy(), begins, -1),
            teacher_top_logprob=_taken(_array(both["teacher_topk_logprobs"][:, 0]), begins, np.nan),
            teacher_label_logprob=_taken(_array(both["teacher_logprob"]), same, np.nan),
        )
        self._seen.append(seen)

    def take(self) -> Seen | None:
        """Return what was seen of the step since the last call."""
        seen, self._seen = self._seen, []
        return _joined(seen) if seen else None


def _joined(parts: list[Seen]) -> Seen:
    """What was seen of several micro-batches, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {"teacher_width": parts[0].teacher_width}
    for field in dataclasses.fields(Seen):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], tuple):
            joined[field.name] = tuple(one for value in values for one in value)
        elif isinstance(values[0], np.ndarray):
            joined[field.name] = np.concatenate(values)
    return Seen(**joined)


def _lengths(cu_seqlens: Tensor, rows: Tensor) -> list[int]:
    """Response tokens of each row."""
    counted = np.searchsorted(rows.numpy(), cu_seqlens.numpy())
    return np.diff(counted).tolist()


def _first(pairing: Pairing, tokens: int, teacher_tokens: int) -> Pairing:
    """The pairing of the first rows alone; rows lie one behind the other on both sides."""
    return Pairing(
        student_start=pairing.student_start[:tokens],
        student_end=pairing.student_end[:tokens],
        teacher_start=pairing.teacher_start[:teacher_tokens],
        teacher_end=pairing.teacher_end[:teacher_tokens],
        student_sample=pairing.student_sample[:tokens],
        teacher_sample=pairing.teacher_sample[:teacher_tokens],
        teacher_labels=pairing.teacher_labels[:teacher_tokens],
    )


def _counterparts(pairing: Pairing) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The teacher's token that begins where each token of the student begins, -1 if none does.

    Returns:
        Int64[T] of any such token, and Int64[T] of those that write the same text.
    """
    covered = covering(pairing)
    begins = np.where(covered.depth == 0, covered.teacher, -1)
    same = np.full(len(begins), -1, np.int64)
    teacher, student = one_to_one(pairing.spans).T
    same[student] = teacher
    return begins, same


def _taken(values: NDArray[Any], at: NDArray[np.int64], missing: float) -> NDArray[Any]:
    """Values by index; `missing` where the index is -1."""
    found = np.full(len(at), missing, values.dtype)
    found[at >= 0] = values[at[at >= 0]]
    return found


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
