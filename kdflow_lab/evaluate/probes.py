"""Probe texts: how student and teacher see every token of a few rows, again and again in a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from kdflow_lab.data.table import tokens_run
from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.probe_file import read
from kdflow_lab.evaluate.taught_rows import TaughtRows
from kdflow_lab.losses import token_statistics
from kdflow_lab.student.group import share

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import StudentPlace, TeacherInfo
    from kdflow_lab.losses import Head
    from kdflow_lab.rundir import RunDirectory
    from kdflow_lab.student.fsdp import Across, Student

__all__ = ["Probes", "read"]


class Probes:
    """Whole rows, prompts included, on which the live student is inspected between two steps.

    The teacher's rows stay in host memory; `TaughtRows` says what that costs, and here every token
    counts as a response token.
    """

    def __init__(
        self,
        student: Student,
        table: TokenTable,
        *,
        teacher: TeacherInfo | None,
        teacher_head: Head | None,
        place: StudentPlace,
        k: int = 10,
        timeout_s: float | None = None,
        across: Across | None = None,
    ) -> None:
        """Take the rows; every rank does so.

        Args:
            student: The live model.
            table: The probe rows, tokenized, the same on every rank: `table.first(n)`; not empty.
            teacher: None inspects the student alone.
            teacher_head: The frozen copy of its head, on the student's device, cut to the
                vocabulary that both share; None without a teacher.
            place: This rank's.
            k: Most likely tokens that are listed; at most the vocabulary.
            timeout_s: How long to wait for an answer of the teacher; None as long as it lives.
            across: Compares tokens if the teacher has another tokenizer: then of all that compares
                only `forward_kl` is written, and of response tokens.

        Raises:
            TransportError: There is a teacher, but `place.aside` says not where to ask it.
        """
        self._student = student
        self._across = across
        self._teacher_head = None if teacher is None else teacher_head
        self._k = k
        self._table = table
        every_token = np.ones_like(table.response_mask)
        every_token[table.offsets[:-1]] = 0  # nothing predicts a row's first token
        asked = dataclasses.replace(
            table, response_mask=every_token, teacher=None, start=None, end=None
        )
        meets = {"place": place, "timeout_s": timeout_s}
        self._rows = TaughtRows(asked, teacher=teacher if table.teacher is None else None, **meets)
        self._answers = None
        if table.teacher is not None and teacher is not None:
            self._answers = TaughtRows(table, teacher=teacher, **meets)
        ends = np.cumsum(tokens_run(table.lengths))
        self._cu_seqlens = np.concatenate([[0], ends]).astype(np.int32)

    def write(self, directory: RunDirectory, step: int) -> Path:
        """Inspect the student as it is now; all ranks call it together, rank 0 writes.

        To be called between two steps. The student is left as it was, and the training's ring is
        not used.

        Args:
            directory: The run's.
            step: The last step that was taken.

        Returns:
            The file, which `read` reads and `probe_file` describes; it is there on return.

        Raises:
            TransportError: The first time: the teacher failed or died.
            OSError: On every rank: the file cannot be written.
        """
        arrays = self._texts() | self._statistics()
        path = directory.probes / f"{step}.safetensors"
        problem = None
        if dist.get_rank() == 0:
            k = arrays["student_topk_ids"].shape[1]
            try:
                probe_file.save(path, arrays, step=step, k=k)
            except OSError as error:
                problem = error
        problem = share(problem)
        if problem is not None:
            raise problem
        return path

    def _texts(self) -> dict[str, np.ndarray]:
        """What the rows say, and where they are."""
        table = self._table
        is_last = np.zeros(len(table.input_ids), dtype=bool)
        is_last[table.offsets[1:] - 1] = True
        place = np.flatnonzero(~is_last)
        return {
            "input_ids": table.input_ids[place],
            "labels": table.input_ids[place + 1],
            "response": table.response_mask[place + 1].astype(bool),
            "cu_seqlens": self._cu_seqlens,
            "row_index": table.row_index,
        }

    def _statistics(self) -> dict[str, np.ndarray]:
        """Look at every token; the whole arrays on every rank, in the table's order."""
        whole: dict[str, Tensor] = {}
        for batch, teacher_hidden in self._rows:
            for name, values in self._look(batch, teacher_hidden).items():
                if name not in whole:
                    whole[name] = values.new_zeros(int(self._cu_seqlens[-1]), *values.shape[1:])
                whole[name][self._places(batch)] = values
        if self._answers is not None:
            whole["forward_kl"] = self._answered(self._answers)
        for values in whole.values():
            # Each token was looked at by one rank, and is zero on the others.
            dist.all_reduce(values)
        return {name: values.numpy() for name, values in whole.items()}

    def _answered(self, rows: TaughtRows) -> Tensor:
        """Forward KL of this rank's response tokens where the teacher reads other ids, Float[P]."""
        found = torch.zeros(int(self._cu_seqlens[-1]))
        if dist.get_rank() == 0:  # the other ranks add their values to it
            found[~torch.from_numpy(self._texts()["response"])] = torch.nan
        for batch, teacher_hidden in rows:
            tokens = self._student.per_token(
                batch, teacher_hidden, self._teacher_head, self._across
            )
            if batch.data_rows:
                # where each token that is run stands, and of those the ones that predict a label
                places = self._places(batch)[batch.rows]
                found[places] = tokens.kd.float().cpu()
        return found

    def _look(self, batch: MicroBatch, teacher_hidden: Tensor | None) -> dict[str, Tensor]:
        """The statistics of a micro-batch, on the CPU."""
        device = self._student.device
        statistics = self._student.look(
            batch,
            lambda hidden, head: token_statistics(
                hidden,
                head,
                None if teacher_hidden is None else teacher_hidden.to(device),
                None if teacher_hidden is None else self._teacher_head,
                batch.labels.to(device),
                k=self._k,
            ),
        )
        return {
            name: values.to("cpu", torch.float32 if values.is_floating_point() else torch.int32)
            for name, values in statistics.items()
        }

    def _places(self, batch: MicroBatch) -> Tensor:
        """Where a micro-batch's tokens stand in the whole arrays, Int64[T]."""
        starts, ends = self._cu_seqlens[:-1], self._cu_seqlens[1:]
        runs = [np.arange(starts[row], ends[row], dtype=np.int64) for row in batch.data_rows]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *runs]))
