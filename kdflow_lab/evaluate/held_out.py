"""Held-out rows on which the student that trains is scored between two steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from kdflow_lab.evaluate.batches import row_sums
from kdflow_lab.evaluate.report import perplexity
from kdflow_lab.evaluate.taught_rows import TaughtRows

if TYPE_CHECKING:
    from kdflow_lab.cache.end import CachingEnd
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import StudentPlace, TeacherInfo
    from kdflow_lab.losses import Head
    from kdflow_lab.student.fsdp import Across, Student
    from kdflow_lab.transport.student_end import StudentEnd

SUMS = ("kl", "agreement", "ce", "compared")


class HeldOut:
    """Scores a sharded student as `Lab.evaluate` scores its checkpoint, without one.

    The teacher's rows stay in host memory; `TaughtRows` says what that costs.
    """

    def __init__(
        self,
        student: Student,
        table: TokenTable,
        *,
        teacher: TeacherInfo | None,
        teacher_head: Head | None,
        place: StudentPlace,
        timeout_s: float | None = None,
        across: Across | None = None,
        before: Callable[[StudentEnd], CachingEnd] | None = None,
    ) -> None:
        """Take the rows; every rank does so.

        Args:
            student: The live model.
            table: The tokenized rows, the same on every rank; not empty.
            teacher: None scores cross-entropy and perplexity alone.
            teacher_head: The frozen copy of its head, on the student's device, cut to the
                vocabulary that both share; None without a teacher.
            place: This rank's.
            timeout_s: How long to wait for an answer of the teacher; None as long as it lives.
            across: Compares tokens if the teacher has another tokenizer. Tokens that it cannot
                compare are left out of `kl` and `agreement`, and `compared` says so.
            before: Puts a cache before the ring to the teacher; None for none.

        Raises:
            TransportError: There is a teacher, but `place.aside` says not where to ask it.
        """
        self._student = student
        self._across = across
        self._teacher_head = None if teacher is None else teacher_head
        self._rows = TaughtRows(
            table, teacher=teacher, place=place, timeout_s=timeout_s, before=before
        )

    def score(self) -> dict[str, Any]:
        """Score the student as it is now; all ranks call it together and get the same.

        To be called between two steps. The student is left as it was, and the training's ring is
        not used.

        Returns:
            `rows` and `tokens` (response tokens); `kl`, KL(teacher || student), and `ce`, both in
            nats and means over those tokens; `agreement`, the share of them where both top tokens
            are the same; `perplexity`, exp(ce). `kl` and `agreement` are None without a teacher.
            With a teacher of another tokenizer also `compared`, the share of the tokens that `kl`
            and `agreement` are means over.

        Raises:
            TransportError: The first time: the teacher failed or died.
        """
        table = self._rows.table
        totals = torch.zeros(len(SUMS), dtype=torch.float64)
        for batch, teacher_hidden in self._rows:
            tokens = self._student.per_token(
                batch, teacher_hidden, self._teacher_head, self._across
            )
            if batch.data_rows:
                _, sums = row_sums(batch, tokens, table)
                totals += torch.tensor([sums[name].sum() for name in SUMS], dtype=torch.float64)
        dist.all_reduce(totals)
        num_tokens = int(table.response_lengths.sum())
        kl, agreement, ce, compared = totals.tolist()
        ce /= num_tokens
        taught = self._teacher_head is not None and compared > 0
        across = {"compared": compared / num_tokens} if self._across is not None else {}
        return {
            "rows": len(table),
            "tokens": num_tokens,
            "kl": kl / compared if taught else None,
            "agreement": agreement / compared if taught else None,
            "perplexity": math.nan if math.isnan(ce) else perplexity(ce),
            "ce": ce,
            **across,
        }
