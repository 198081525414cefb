"""A look at the first answers of a step while student and teacher are at it: token by token.

Everything that is needed (both models' rows, the student's whole head) exists only while the loss
is computed, so that is where the look is taken; it costs the head products of a few answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kdflow_lab.align.pairing import Pairing
from kdflow_lab.losses import token_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.losses import Head
    from kdflow_lab.student.fsdp import Across

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What was seen of the first answers of a micro-batch.

    T tokens of the student, U of the teacher; the same where they have one tokenizer.

    Attributes:
        data_rows: Rows of the step's table that were looked at.
        lengths: Tokens of the student of each.
        ids: Int64[T], the student's tokens.
        kl: Float32[T], KL(teacher || student) in nats; 0 at tokens that cannot be compared.
        student_entropy: Float32[T], nats.
        student_logprob: Float32[T], nats.
        teacher_entropy: Float32[U], nats.
        teacher_logprob: Float32[U], nats: what the teacher thinks of the tokens as it reads them.
        teacher_lengths: Tokens of the teacher of each row.
        teacher_width: Columns of the teacher's head: ln of it is the largest entropy.
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


class Watch:
    """Looks at a step's first micro-batch; `Student.watch` calls it on rank 0."""

    def __init__(self, rows: int, across: Across | None) -> None:
        """Look at the first `rows` rows; `across` compares tokens of two tokenizers."""
        self._rows, self._across = rows, across
        self.seen: Seen | None = None

    @torch.no_grad()
    def __call__(
        self,
        batch: MicroBatch,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
    ) -> None:
        """Look, if it is the first micro-batch of its step."""
        if batch.index or not batch.data_rows or teacher_hidden is None or teacher_head is None:
            return
        lengths = _lengths(batch.cu_seqlens, batch.rows)[: self._rows]
        teacher_lengths = _lengths(batch.asked.cu_seqlens, batch.asked.rows)[: self._rows]
        student_hidden = student_hidden[: sum(lengths)].detach()
        teacher_hidden = teacher_hidden[: sum(teacher_lengths)]
        labels = batch.labels[: sum(lengths)].to(student_hidden.device)
        if batch.pairing is None or self._across is None:
            both = token_statistics(
                student_hidden, student_head, teacher_hidden, teacher_head, labels, k=1
            )
            kl = both["forward_kl"]
        else:
            theirs = batch.asked.labels[: sum(teacher_lengths)].to(teacher_hidden.device)
            both = token_statistics(student_hidden, student_head, None, None, labels, k=1)
            alone = token_statistics(teacher_hidden, teacher_head, None, None, theirs, k=1)
            both |= {name.replace("student_", "teacher_"): values for name, values in alone.items()}
            pairing = _first(batch.pairing, sum(lengths), sum(teacher_lengths))
            kl = self._across.per_token(
                student_hidden, student_head, teacher_hidden, teacher_head, labels, pairing
            ).kd
        self.seen = Seen(
            data_rows=batch.data_rows[: self._rows],
            lengths=tuple(lengths),
            ids=labels.cpu().numpy(),
            kl=_array(kl),
            student_entropy=_array(both["student_entropy"]),
            student_logprob=_array(both["student_logprob"]),
            teacher_entropy=_array(both["teacher_entropy"]),
            teacher_logprob=_array(both["teacher_logprob"]),
            teacher_lengths=tuple(teacher_lengths),
            teacher_width=teacher_head.width,
        )

    def take(self) -> Seen | None:
        """Return what was seen since the last call."""
        seen, self.seen = self.seen, None
        return seen


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


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
