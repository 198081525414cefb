"""Steps whose loss or gradient is not a number: left out, counted, kept to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.data import kept
from kdflow_lab.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from kdflow_lab.data.batches import MicroBatch
    from kdflow_lab.rundir import RunDirectory

KEPT_BATCHES = 20
"""Batches kept in a run directory at most; a run that skips all the time fills no disk."""


class SkipGuard:
    """Counts the steps that were left out, and ends the run after too many in a row."""

    def __init__(
        self,
        directory: RunDirectory,
        *,
        rank: int,
        ranks: int,
        most: int,
    ) -> None:
        """Watch one rank's steps.

        Args:
            directory: The run's.
            rank: Rank 0 says it in `events.jsonl`.
            ranks: That take the steps together.
            most: Steps in a row that may be left out.
        """
        self._directory = directory
        self._rank = rank
        self._ranks = ranks
        self._most = most
        self._in_a_row = 0

    def saw(
        self,
        step: int,
        *,
        loss: float,
        grad_norm: float,
        batches: Sequence[MicroBatch],
        row_index: np.ndarray,
    ) -> bool:
        """Look at a step; return whether it was left out.

        Args:
            step: Its number, counted from 1.
            loss: Of the whole batch, the same on every rank.
            grad_norm: Likewise.
            batches: This rank's micro-batches of it.
            row_index: Int32[N], the row of the data that each row of their table came from.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        file = self._keep(step, batches, row_index)
        if self._rank == 0:
            self._directory.event(
                "skipped",
                step=step,
                loss=str(loss),
                grad_norm=str(grad_norm),
                in_a_row=self._in_a_row,
                batch=None if file is None else str(file),
                message=f"Step {step} was left out: its loss is {loss}, its gradient {grad_norm}.",
            )
        return True

    def check(self, step: int) -> None:
        """Raise if too many steps in a row were left out.

        Raises:
            RunError: They were.
        """
        if self._in_a_row >= self._most:
            raise RunError(
                f"{self._in_a_row} steps in a row, up to {step}, had a loss or gradient that is no "
                "number; the weights are those before them. kdflow replay "
                f"{self._directory.path.name}@{step} shows which rows and tokens cause it. Leave "
                "them out, or lower the learning rate, then resume or fork the run."
            )

    def _keep(self, step: int, batches: Sequence[MicroBatch], row_index: np.ndarray) -> Path | None:
        """Keep this rank's part of a batch; None if there are enough, or no room for it."""
        folder = self._directory.skipped
        # Another rank may have kept its part of this step already: it is not one more.
        if len({*kept.steps(folder), step}) > KEPT_BATCHES:
            return None
        file = folder / f"{step}-{self._rank}.safetensors"
        try:
            kept.save(file, batches, row_index, step=step, ranks=self._ranks)
        except OSError:  # no reason to end the run, still less on one rank alone
            return None
        return file
