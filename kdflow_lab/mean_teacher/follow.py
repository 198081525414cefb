"""Keeps a teacher behind its student: when it is updated, how, and who must know."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from kdflow_lab.errors import RunError
from kdflow_lab.load import load_model
from kdflow_lab.losses import Head
from kdflow_lab.mean_teacher.average import Average
from kdflow_lab.mean_teacher.link import WeightLink
from kdflow_lab.mean_teacher.one import check_one_model
from kdflow_lab.student.group import made_once
from kdflow_lab.transport.segment import WeightSegment

if TYPE_CHECKING:
    from torch import Tensor

    from kdflow_lab.config import DistillConfig
    from kdflow_lab.jobs import TrainJob

OWN = 0
"""Version of a teacher that was never updated: it has the weights of its folder."""


class Update(NamedTuple):
    """What became of a teacher.

    Attributes:
        version: Of its weights: the step after which they were made.
        seconds: Until it computed with them, the canary included.
        bytes: That were handed over.
        drift: What the canary measured, in nats.
    """

    version: int
    seconds: float
    bytes: int
    drift: dict[str, float]


def may_ask(step: int, *, done: int, every: int | None) -> bool:
    """Tell whether the teacher has the weights that a step's rows are to be computed with.

    They are those of the last update at or before the step, so nothing behind an update may be
    asked for before it, however deep the ring is.

    Args:
        step: Counted from 0.
        done: Steps that were taken; the update that is due after them is made.
        every: Steps between two updates; None for a teacher that stays as it is.
    """
    return every is None or step // every * every <= done


class MeanTeacher:
    """One rank's part in a teacher that follows; all ranks call the same methods together.

    Attributes:
        version: Of the teacher's weights: the step after which they were made, or `OWN`.
        average: Of those weights, in float32.
    """

    def __init__(
        self, job: TrainJob, config: DistillConfig, model: torch.nn.Module, differs: str
    ) -> None:
        """Read the teacher's weights, and meet its engine.

        Args:
            job: This rank's.
            config: `teacher_update_every` and `teacher_ema` are read.
            model: The student's, sharded.
            differs: How the tokenizers differ; empty if they do not.

        Raises:
            ModelError: Teacher and student are not of one architecture and tokenizer.
            RunError: The run was given no place to meet the teacher.
            TransportError: The teacher does not take weights, or there is no memory for them.
        """
        if job.teacher is None or job.place.weights is None or config.teacher_update_every is None:
            raise RunError("A teacher that follows the student needs a lab. Start the run by one.")
        made_once(lambda: check_one_model(job, differs))
        self._path, self._every, self._ema = (
            job.teacher.path,
            config.teacher_update_every,
            config.teacher_ema,
        )
        self._dtype: torch.dtype = getattr(torch, job.teacher.dtype)
        self.version = OWN
        start = load_model(self._path, trust_remote_code=job.trust_remote_code)
        self.average = Average(model, start)
        del start
        self._link: WeightLink | None = None
        self._segment: WeightSegment | None = None
        path, timeout_s = job.place.weights, config.timeout_s
        try:
            made_once(lambda: self._meet(path, timeout_s))
        except BaseException:
            self.close()
            raise

    def _meet(self, path: str, timeout_s: float) -> None:
        """Give the engine the memory; on rank 0."""
        self._segment = WeightSegment.create(self.average.entries(self._dtype))
        self._link = WeightLink(path, timeout_s=timeout_s)
        self._link.hand_on(self._segment)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it; filled in place when one is loaded."""
        return self.average.tensors

    def is_due(self, done: int) -> bool:
        """Tell whether the teacher is to be updated after so many steps."""
        return done > self.version and done % self._every == 0

    def update(self, done: int) -> Update:
        """Move the average towards the student as it is after `done` steps, and hand it over.

        Raises:
            ModelError: The teacher did not take the weights, or its rows drifted.
            TransportError: The teacher has died.
        """
        start = time.perf_counter()
        self.average.update(self._ema)
        self.version = done
        return self.hand_over(start)

    def hand_over(self, start: float | None = None) -> Update:
        """Give the teacher the average as it is: an engine that is new has not got it.

        Args:
            start: When it began, of `time.perf_counter`; None is now.

        Raises:
            ModelError: The teacher did not take the weights, or its rows drifted.
            TransportError: The teacher has died.
        """
        start = time.perf_counter() if start is None else start
        self.average.write(self._segment, dtype=self._dtype, version=self.version)
        drift = made_once(self._load)
        seconds = round(time.perf_counter() - start, 4)
        size = sum(one.numel() * self._dtype.itemsize for one in self.average.tensors.values())
        return Update(self.version, seconds, size, drift)

    def _load(self) -> dict[str, float]:
        assert self._link is not None
        return self._link.load(self.version)["drift"]

    def head(self, old: Head) -> Head:
        """Return the teacher's head as it is now: from what was handed over, on every rank.

        Args:
            old: The frozen copy so far, whose device, scale, soft-cap and vocabulary stay.
        """
        weight, bias = torch.empty_like(old.weight), None
        if old.bias is not None:
            bias = torch.empty_like(old.bias)
        if self._segment is not None:
            new = Head.among(self._segment.views(0), self._path, dtype=self._dtype)
            weight.copy_(new.weight)
            if bias is not None and new.bias is not None:
                bias.copy_(new.bias)
        for tensor in (weight, bias):
            if tensor is not None:
                dist.broadcast(tensor, src=0)
        return dataclasses.replace(old, weight=weight, bias=bias)

    def close(self) -> None:
        """Leave the teacher's engine, and give the memory back."""
        if self._link is not None:
            self._link.close()
        if self._segment is not None:
            self._segment.close()


@contextlib.contextmanager
def open_mean_teacher(*arguments: Any, every: int | None) -> Iterator[MeanTeacher | None]:
    """Open a `MeanTeacher` for the length of a run; None if the teacher stays as it is.

    Args:
        *arguments: Of `MeanTeacher`.
        every: The run's `teacher_update_every`.
    """
    if every is None:
        yield None
        return
    with contextlib.closing(MeanTeacher(*arguments)) as made:
        yield made
