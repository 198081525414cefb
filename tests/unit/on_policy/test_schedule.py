"""No step is ever staler than allowed, and nothing is asked for too late."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.errors import ConfigError
from kdflow_lab.on_policy.schedule import Schedule


@given(
    steps_per_rollout=st.integers(1, 5),
    extra=st.integers(0, 4),
    sync_every=st.integers(1, 6),
    steps=st.integers(1, 40),
)
def test_no_step_is_staler_than_allowed(steps_per_rollout, extra, sync_every, steps) -> None:
    schedule = Schedule(steps_per_rollout, sync_every, steps_per_rollout - 1 + extra)
    versions: dict[int, int] = {}
    syncs: list[int] = []
    synced, asked = -1, 0
    for step in range(steps):
        while schedule.may_ask(asked, step):  # what the loop does before every step
            if schedule.must_sync(asked, synced):
                synced = step
                syncs.append(step)
            versions[asked] = synced
            asked += 1
        version = versions[schedule.group(step)]  # it was asked for in time
        assert 0 <= step - version <= schedule.max_staleness
    assert all(schedule.version(group) == versions[group] for group in versions)
    apart = [b - a for a, b in itertools.pairwise(syncs)]
    assert all(1 <= one < steps_per_rollout + schedule.period for one in apart)
    assert syncs[0] == 0


def test_syncs_are_as_rare_as_asked_for_if_staleness_allows_it() -> None:
    versions = [Schedule(1, 3, 2).version(group) for group in range(8)]
    assert versions == [0, 0, 0, 3, 3, 3, 6, 6]
    versions = [Schedule(1, 2, 2).version(group) for group in range(8)]
    assert versions == [0, 0, 0, 2, 2, 4, 4, 6]
    versions = [Schedule(1, 5, 1).version(group) for group in range(5)]
    assert versions == [0, 0, 2, 2, 4]  # every second step: more would be too stale


def test_strictly_on_policy_asks_for_each_step_with_its_own_weights() -> None:
    schedule = Schedule()
    for step in range(5):
        assert schedule.may_ask(step, step) and not schedule.may_ask(step + 1, step)
        assert schedule.must_sync(step, step - 1) and not schedule.must_sync(step, step)


def test_staleness_lets_the_next_group_be_written_while_this_one_is_learnt() -> None:
    schedule = Schedule(max_staleness=1)
    assert schedule.may_ask(1, 0) and not schedule.may_ask(2, 0)


def test_more_steps_on_a_group_than_staleness_allows_is_refused() -> None:
    with pytest.raises(ConfigError, match="Raise max_staleness to 3"):
        Schedule(steps_per_rollout=4, max_staleness=2)
