"""Probe texts: how student and teacher see every token of a few rows, again and again in a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.inspect_table import cu_seqlens_of, every_token, places, predicted
from kdflow_lab.evaluate.probe_file import read
from kdflow_lab.evaluate.sandbox import token_texts
from kdflow_lab.evaluate.taught_rows import TaughtRows
from kdflow_lab.losses import token_statistics
from kdflow_lab.student.group import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from kdflow_lab.cache.end import CachingEnd
    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.jobs import StudentPlace, TeacherInfo
    from kdflow_lab.losses import Head
    from kdflow_lab.rundir import RunDirectory
    from kdflow_lab.student.fsdp import Across, Student
    from kdflow_lab.transport.student_end import StudentEnd

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
        before: Callable[[StudentEnd], CachingEnd] | None = None,
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
            before: Puts a cache before the ring to the teacher; None for none.

        Raises:
            TransportError: There is a teacher, but `place.aside` says not where to ask it.
        """
        self._student = student
        self._across = across
        self._teacher_head = None if teacher is None else teacher_head
        self._k = k
        self._table = table
        asked = every_token(table)
        meets = {"place": place, "timeout_s": timeout_s, "before": before}
        self._rows = TaughtRows(asked, teacher=teacher if table.teacher is None else None, **meets)
        self._answers = None
        if table.teacher is not None and teacher is not None:
            self._answers = TaughtRows(table, teacher=teacher, **meets)
        self._cu_seqlens = cu_seqlens_of(table)

    def write(self, directory: RunDirectory, step: int, *, tokenizer: Any = None) -> Path:
        """Inspect the student as it is now; all ranks call it together, rank 0 writes.

        To be called between two steps. The student is left as it was, and the training's ring is
        not used.

        Args:
            directory: The run's.
            step: The last step that was taken.
            tokenizer: The student's, which says the texts of the tokens on rank 0, the only one
                that needs it; None leaves them out.

        Returns:
            The file, which `read` reads and `probe_file` describes; it is there on return.

        Raises:
            TransportError: The first time: the teacher failed or died.
            OSError: On every rank: the file cannot be written.
        """
        arrays = predicted(self._table) | self._statistics()
        path = directory.probes / f"{step}.safetensors"
        problem = None
        if dist.get_rank() == 0:
            k = arrays["student_topk_ids"].shape[1]
            texts = None
            if tokenizer is not None:
                texts = token_texts(tokenizer, probe_file.ids_in(arrays))
            try:
                probe_file.save(path, arrays, step=step, k=k, texts=texts)
            except OSError as error:
                problem = error
        problem = share(problem)
        if problem is not None:
            raise problem
        return path

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
            found[~torch.from_numpy(predicted(self._table)["response"])] = torch.nan
        for batch, teacher_hidden in rows:
            tokens = self._student.per_token(
                batch, teacher_hidden, self._teacher_head, self._across
            )
            if batch.data_rows:
                # where each token that is run stands, and of those the ones that predict a label
                found[self._places(batch)[batch.rows]] = tokens.kd.float().cpu()
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
        return {name: torch.from_numpy(array) for name, array in plain(statistics).items()}

    def _places(self, batch: MicroBatch) -> Tensor:
        """Where a micro-batch's tokens stand in the whole arrays, Int64[T]."""
        return torch.from_numpy(places(self._cu_seqlens, batch.data_rows))


def plain(statistics: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as the arrays of a probe file: float32 or int32, on the CPU."""
    kinds = {True: torch.float32, False: torch.int32}
    return {
        name: values.to("cpu", kinds[values.is_floating_point()]).numpy()
        for name, values in statistics.items()
    }
