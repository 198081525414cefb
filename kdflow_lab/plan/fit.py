"""What would fit where a plan does not: changes of options, tried one by one, the nearest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig, LabConfig
    from kdflow_lab.plan.devices import Room

MOST = 3
"""Remedies that are named."""
SMALLEST_BUDGET = 64
RANKS = (16, 8)
STUDENTS = 8


@dataclass(frozen=True, slots=True)
class Remedy:
    """Options with which a run would fit.

    Attributes:
        lab: Changes of the lab's options.
        run: Changes of the run's.
        rooms: What is needed and free then.
    """

    lab: Mapping[str, Any]
    run: Mapping[str, Any]
    rooms: tuple[Room, ...]

    def rooms_of(self, devices: Collection[str]) -> list[Room]:
        """What is needed and free then on some devices."""
        return [room for room in self.rooms if room.device in devices]

    def __str__(self) -> str:
        """The options as they are written."""
        both = {**self.lab, **self.run}
        text = ", ".join(f"{name}={value!r}" for name, value in both.items())
        return f"{text} (a new lab)" if self.lab else text


Try = Callable[[Mapping[str, Any], Mapping[str, Any]], "tuple[Room, ...] | None"]
"""Plans with changes of the lab's options and the run's; None if these cannot be used."""


def remedies(
    lab: LabConfig, config: DistillConfig, *, longest: int, on_gpu: bool, attempt: Try
) -> list[Remedy]:
    """Find changes with which a run fits.

    Single changes come first, in the order of `singles`; if none of them is enough, they are joined
    one after another until it is.

    Args:
        lab: The lab's options.
        config: The run's.
        longest: Tokens of the longest row, which a micro-batch must hold.
        on_gpu: Whether the models compute on GPUs.
        attempt: Plans with changes.

    Returns:
        At most `MOST`, the nearest first; empty if nothing that is known here is enough.
    """
    found: list[Remedy] = []
    families = list(singles(lab, config, longest=longest, on_gpu=on_gpu))
    for family in families:
        for of_lab, of_run in family:
            rooms = attempt(of_lab, of_run)
            if rooms is not None and all(room.fits for room in rooms):
                found.append(Remedy(of_lab, of_run, rooms))
                break
        if len(found) == MOST:
            return found
    if found:
        return found
    joined_lab: dict[str, Any] = {}
    joined_run: dict[str, Any] = {}
    for family in families:
        of_lab, of_run = family[-1]  # the furthest of its kind
        joined_lab |= of_lab
        joined_run |= of_run
        rooms = attempt(joined_lab, joined_run)
        if rooms is not None and all(room.fits for room in rooms):
            return [Remedy(dict(joined_lab), dict(joined_run), rooms)]
    return []


def singles(
    lab: LabConfig, config: DistillConfig, *, longest: int, on_gpu: bool
) -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Yield the kinds of change, each from its mildest to its furthest value.

    First what changes no result (micro-batches, chunks, depth, checkpointing of activations), then
    what needs more GPUs, then what changes what is trained.
    """
    budgets = list(_budgets(config, longest))
    if budgets:
        yield [({}, change) for change in budgets]
    if not config.activation_checkpointing:
        yield [({}, {"activation_checkpointing": True})]
    if config.chunk_tokens == "auto" or config.chunk_tokens > 64:
        yield [({}, {"chunk_tokens": tokens}) for tokens in (256, 64)]
    if config.depth > 1 and config.algorithm != "sft":
        yield [({}, {"depth": 1})]
    if config.keep_last > 1:
        yield [({}, {"keep_last": 1})]
    if on_gpu:
        if config.precision == "float32":
            yield [({}, {"precision": "bfloat16"})]
        more = [n for n in (2, 4, STUDENTS) if n > lab.students and lab.student_devices is None]
        if more:
            yield [({"students": n}, {}) for n in more]
        if config.teacher_batches_per_phase is None and config.algorithm != "sft":
            yield [({}, {"teacher_batches_per_phase": 8})]
    elif lab.students > 1:
        yield [({"students": n}, {}) for n in range(lab.students - 1, 0, -1)]
    if config.lora_r is None:
        yield [({}, {"lora_r": rank}) for rank in RANKS]


def _budgets(config: DistillConfig, longest: int) -> Iterator[dict[str, Any]]:
    """Halve micro_batch_tokens down to the longest row; max_length must not be above it."""
    budget = config.micro_batch_tokens // 2
    while budget >= max(SMALLEST_BUDGET, longest):
        change: dict[str, Any] = {"micro_batch_tokens": budget}
        if config.max_length > budget:
            change["max_length"] = budget
        yield change
        budget //= 2
