"""What each step learns from: rows of the data, or rows that the student has just written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kdflow_lab.config import DistillConfig
from kdflow_lab.data.plan import DataPlan, StepPlan
from kdflow_lab.data.table import TokenTable, tokens_run
from kdflow_lab.errors import ConfigError


class Lesson(NamedTuple):
    """One step.

    Attributes:
        table: Where its rows are.
        plan: Which of them each rank runs, in which micro-batches.
    """

    table: TokenTable
    plan: StepPlan


class Sizes(NamedTuple):
    """What no micro-batch exceeds, for the ring's slots: as the teacher reads it.

    Attributes:
        tokens: Tokens that are run.
        sequences: Rows.
        rows: Response tokens.
    """

    tokens: int
    sequences: int
    rows: int


class Lessons(Protocol):
    """The data of a run, step by step; the same on every rank."""

    sizes: Sizes
    steps_per_epoch: float

    def prepare(self, step: int) -> None:
        """Make the lesson of step `step` (counted from 0) available; all ranks call it together."""
        ...

    def lesson(self, step: int) -> Lesson | None:
        """Return the lesson of a step; None if it is not there yet."""
        ...

    def check(self, changes: Mapping[str, Any]) -> None:
        """Refuse changes of options that these lessons cannot follow.

        Raises:
            ConfigError: One has no effect in this run.
        """
        ...

    def measured(self) -> dict[str, float]:
        """Return what the lessons add to the metrics of the step since the last call."""
        ...

    def learnt(self, step: int, kd: float) -> None:
        """Hear that step `step` was taken, and its divergence in nats a token."""
        ...

    def saved(self, step: int) -> None:
        """Hear that a checkpoint of so many steps was written; all ranks call it together."""
        ...

    def state(self, step: int) -> dict[str, Any] | None:
        """Return what step `step` and those behind it need to be found again, as JSON values.

        It goes into the checkpoint of so many steps. None on all ranks but 0, and where the lessons
        are a function of seed and step.
        """
        ...

    def begin(self, step: int, state: dict[str, Any] | None) -> None:
        """Go on from step `step`, with what `state` returned of it; before the first `prepare`."""
        ...


class OffPolicyLessons:
    """What lessons from data alone have in common: nothing is measured, nothing follows a step."""

    def check(self, changes: Mapping[str, Any]) -> None:
        """See `Lessons.check`."""
        if "lmbda" in changes:
            raise ConfigError(
                "lmbda is the on-policy share of a run's steps, and this run is off-policy. Fork "
                "it with on_policy=True."
            )

    def measured(self) -> dict[str, float]:
        """See `Lessons.measured`: nothing."""
        return {}

    def learnt(self, step: int, kd: float) -> None:
        """See `Lessons.learnt`."""

    def saved(self, step: int) -> None:
        """See `Lessons.saved`."""


class DataLessons(OffPolicyLessons):
    """Rows of the data in a planned order; there at any time."""

    def __init__(self, table: TokenTable, config: DistillConfig, world_size: int) -> None:
        """Plan the order of a table's rows."""
        self.table = table
        self.plan = plan_of(table, config, world_size, config.batch_size, weights=config.weights)
        self.sizes = Sizes(self.plan.max_tokens(), self.plan.max_sequences(), self.plan.max_rows())
        self.steps_per_epoch = self.plan.steps_per_epoch

    def prepare(self, step: int) -> None:
        """See `Lessons.prepare`: there is nothing to do."""

    def lesson(self, step: int) -> Lesson:
        """See `Lessons.lesson`."""
        return Lesson(self.table, self.plan.step(step))

    def state(self, step: int) -> None:
        """See `Lessons.state`: nothing."""

    def begin(self, step: int, state: dict[str, Any] | None) -> None:
        """See `Lessons.begin`."""


def plan_of(
    table: TokenTable,
    config: DistillConfig,
    world_size: int,
    batch_size: int,
    *,
    parts: int = 1,
    weights: Sequence[float] | None = None,
) -> DataPlan:
    """Plan the rows of a table under a run's budgets.

    Args:
        table: All rows, or those of one step.
        config: The run's.
        world_size: Number of ranks.
        batch_size: Rows of a step.
        parts: Of a step that is the whole table: micro-batches of a rank, about and at least, if
            its rows are as many.
        weights: Of the data sets that the table holds; None for one, or for the rows of one step.
    """
    budget = config.micro_batch_tokens
    if parts > 1:
        tokens = tokens_run(table.longest_lengths)
        share = -(-int(tokens.sum()) // (world_size * parts))
        budget = min(budget, max(share, int(tokens.max())))
    return DataPlan(
        table.longest_lengths,
        table.response_lengths,
        asked_lengths=table.asked.response_lengths,
        sources=table.source,
        weights=weights,
        batch_size=batch_size,
        world_size=world_size,
        micro_batch_tokens=budget,
        micro_batch_rows=config.micro_batch_rows,
        seed=config.seed,
    )
