"""What `set` changed, over all attempts: each step has the settings that the user last gave it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab import settings

STEPS = 12
NAMES = ("lr", "kd_ratio", "steps")


def _set(step: int, **changes: Any) -> dict[str, Any]:
    return {"event": "set", "step": step, "changes": changes}


def test_later_set_replaces_what_an_earlier_attempt_changed_from_that_step_on() -> None:
    """Attempt 1 set lr at 30 and died at 35; attempt 2 began from 20 and set it at 25."""
    events = [
        _set(10, lr=0.1),
        _set(30, lr=0.3, kd_ratio=0.5),
        {"event": "starting"},
        _set(25, lr=0.2),
    ]
    line = settings.timeline(events)
    assert line == [(10, {"lr": 0.1}), (25, {"lr": 0.2}), (30, {"kd_ratio": 0.5})]
    assert settings.in_force(line, 9) == {}
    assert settings.in_force(line, 24) == {"lr": 0.1}
    assert settings.in_force(line, 30) == {"lr": 0.2, "kd_ratio": 0.5}


def test_two_sets_before_the_same_step_are_merged_and_the_second_counts() -> None:
    line = settings.timeline([_set(3, lr=1, kd_ratio=1), _set(3, lr=2)])
    assert settings.in_force(line, 3) == {"lr": 2, "kd_ratio": 1}


def test_what_a_resumed_run_makes_again_is_no_new_change() -> None:
    events = [_set(5, lr=1), _set(8, lr=2), {**_set(5, lr=1), "replayed": True}]
    assert settings.in_force(settings.timeline(events), 8) == {"lr": 2}


def test_given_changes_are_not_kept_by_reference() -> None:
    changes = {"lr": 1}
    line = settings.replaced([], 1, changes)
    changes["lr"] = 2
    assert line == [(1, {"lr": 1})]


attempts = st.lists(
    st.tuples(
        st.integers(0, STEPS),  # from where the attempt goes on, if there is a checkpoint
        st.lists(
            st.tuples(
                st.integers(1, STEPS),
                st.dictionaries(st.sampled_from(NAMES), st.integers(0, 99), min_size=1),
            ),
            max_size=4,
        ),
        st.integers(1, STEPS),  # where it dies
    ),
    min_size=1,
    max_size=5,
)


@given(attempts)
def test_every_step_has_what_was_last_given_to_it(plan: list[Any]) -> None:
    """Runs attempt after attempt as `Training` and `Control` do, against a plain table.

    The table says for each step and option what the user last asked for from there on. Each
    attempt's own settings, made from the events alone, must be the table's at every step it takes.
    """
    table = {name: [None] * (STEPS + 2) for name in NAMES}
    events: list[dict[str, Any]] = []
    done = 0
    for asked_from, sets, dies in plan:
        step = min(asked_from, done)
        line = settings.timeline(events)
        current = dict(settings.in_force(line, step))
        to_come = [(at, changes) for at, changes in line if at > step]
        while step < dies:
            boundary = step + 1
            for at, changes in to_come:
                if at == boundary:
                    current |= changes
                    events.append({**_set(at, **changes), "replayed": True})
            for at, changes in sets:
                if at == boundary:
                    events.append(_set(at, **changes))
                    current |= changes
                    to_come = settings.replaced(to_come, at, changes)
                    for name, value in changes.items():
                        table[name][at:] = [value] * (STEPS + 2 - at)
            to_come = [(at, changes) for at, changes in to_come if at > boundary]
            given_ = {
                name: table[name][boundary] for name in NAMES if table[name][boundary] is not None
            }
            assert current == given_
            assert settings.in_force(settings.timeline(events), boundary) == given_
            step = boundary
        done = max(done, step)
    final = settings.timeline(events)
    assert [at for at, _ in final] == sorted(at for at, _ in final)
    for step in range(1, STEPS + 1):
        given_ = {name: table[name][step] for name in NAMES if table[name][step] is not None}
        assert settings.in_force(final, step) == given_
