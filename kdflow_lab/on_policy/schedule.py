"""When answers are asked for, and with which weights they are written."""

from __future__ import annotations

from dataclasses import dataclass

from kdflow_lab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Schedule:
    """How old the weights may be that wrote what a step learns from.

    Steps are counted from 0, and weights have the number of the steps that made them as their
    version. Step t, taken on answers of version v, is t - v steps stale. Answers are asked for in
    groups: group g serves the steps g * steps_per_rollout and following.

    Attributes:
        steps_per_rollout: Optimizer steps on one group.
        sync_every: Steps between two syncs, at most: fewer where staleness asks for newer weights.
        max_staleness: Of any step; 0 is strictly on-policy.
    """

    steps_per_rollout: int = 1
    sync_every: int = 1
    max_staleness: int = 0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: The later steps of a group would be staler than allowed.
        """
        if self.steps_per_rollout - 1 > self.max_staleness:
            raise ConfigError(
                f"steps_per_rollout={self.steps_per_rollout} makes its last step "
                f"{self.steps_per_rollout - 1} steps stale, but max_staleness is "
                f"{self.max_staleness}. Raise max_staleness to {self.steps_per_rollout - 1}, or "
                "lower steps_per_rollout."
            )

    def group(self, step: int) -> int:
        """Which group a step learns from."""
        return step // self.steps_per_rollout

    @property
    def period(self) -> int:
        """Steps between two syncs: as many as asked for, if every group finds weights then."""
        return max(1, min(self.sync_every, self.max_staleness - self.steps_per_rollout + 2))

    def version(self, group: int) -> int:
        """The weights that write a group: the first that are synced and new enough.

        The group's last step decides, since it is the stalest.
        """
        oldest = (group + 1) * self.steps_per_rollout - 1 - self.max_staleness
        return max(0, -(-oldest // self.period) * self.period)

    def may_ask(self, group: int, steps_done: int) -> bool:
        """Whether the weights that write a group exist after so many steps."""
        return steps_done >= self.version(group)

    def must_sync(self, group: int, synced: int) -> bool:
        """Whether the weights of version `synced` (below 0 for none of this run) are too old."""
        return synced < self.version(group)
