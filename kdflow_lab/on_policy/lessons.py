"""Steps on what the student itself has just written, mixed with rows of the data if asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.data.plan import DataPlan
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import ConfigError
from kdflow_lab.lessons import DataLessons, Lesson, Sizes, plan_of
from kdflow_lab.on_policy.schedule import Schedule
from kdflow_lab.rollout.sampling import Sample, Sampling, from_arrays, to_arrays
from kdflow_lab.student.group import share, share_arrays

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.on_policy.journal import Journal
    from kdflow_lab.on_policy.prompts import Prompts
    from kdflow_lab.on_policy.watch import Watch
    from kdflow_lab.on_policy.written import Writer
    from kdflow_lab.rollout.client import RolloutEnd
    from kdflow_lab.student.fsdp import Student


SHORT_S = 0.5
"""How long rank 0 waits for answers before the ranks meet again."""
PARTS = 4
"""Micro-batches of a step, at least: the teacher reads one while the students learn from the one
before. Off-policy it reads ahead into the next step; here the next step is not written yet."""
PINNED = 4
"""Prompts that are answered again at every checkpoint."""


@dataclass
class Group:
    """The answers of one request.

    Attributes:
        rows: Numbers of the prompts that were asked.
        samples: By prompt, then by sample.
        numbers: By step that learns from the group: which samples, in its table's order.
        lessons: By step, likewise.
    """

    rows: Sequence[int]
    samples: list[Sample]
    numbers: dict[int, list[int]] = field(default_factory=dict)
    lessons: dict[int, Lesson] = field(default_factory=dict)


class WrittenLessons:
    """The lessons of an on-policy run.

    Which prompts a step asks, and which random numbers its answers are drawn with, follow from the
    seed and the step alone. So a resumed run goes on as it would have: bit for bit if it is
    strictly on-policy; otherwise its first answers are written by newer weights than before.
    """

    def __init__(
        self,
        prompts: Prompts,
        writer: Writer | None,
        end: RolloutEnd,
        student: Student,
        *,
        config: DistillConfig,
        stop_ids: Sequence[int],
        rank: int,
        world_size: int,
        data: DataLessons | None,
        watch: Watch | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Plan the prompts; nothing is asked yet.

        Args:
            prompts: All of them, the same on every rank.
            writer: Makes tables of answers; on rank 0, None on the others.
            end: To the rollout engine.
            student: Whose weights write.
            config: Sampling, schedule and budgets are read here.
            stop_ids: That end an answer, in the student's ids.
            rank: This one.
            world_size: Number of students.
            data: Rows with answers, for the steps that `lmbda` leaves to them; None if there are
                none.
            watch: Looks at the answers while they are learnt from; on rank 0.
            journal: Writes them down; on rank 0.

        Raises:
            ConfigError: The schedule contradicts itself.
        """
        self._prompts, self._writer, self._end, self._student = prompts, writer, end, student
        self._config, self._leader, self._world_size = config, rank == 0, world_size
        self._stop_ids = tuple(stop_ids)
        self._data, self._watch, self._journal = data, watch, journal
        student.watch = watch
        self._schedule = Schedule(config.steps_per_rollout, config.sync_every, config.max_staleness)
        asked = config.batch_size // config.samples_per_prompt * config.steps_per_rollout
        self._plan = DataPlan(
            prompts.longest + 1,
            np.ones(len(prompts), np.int64),
            batch_size=asked,
            world_size=1,
            micro_batch_tokens=int(prompts.longest.max()) + 1,
            seed=config.seed,
            sources=prompts.student.source,
            weights=config.weights,
        )
        self.steps_per_epoch = len(prompts) / asked * config.steps_per_rollout
        self.sizes = self._sizes()
        self._measured = self._nothing_measured()
        self.groups: dict[int, Group] = {}
        self._decided: dict[int, bool] = {}  # by step: whether it is on-policy
        self._asked: list[int] = []  # groups that are being written, in order
        self._next = 0  # the next group to ask for
        self._synced = -1

    def _sizes(self) -> Sizes:
        """What no micro-batch can exceed, whatever is written."""
        config, most = self._config, self._config.micro_batch_tokens
        sizes = [
            Sizes(
                tokens=most,
                sequences=min(config.batch_size, most // int(self._prompts.longest.min())),
                # a teacher of another tokenizer may read an answer as more tokens
                rows=most
                if self._prompts.teacher is not None
                else min(most, config.batch_size * config.max_new_tokens),
            )
        ]
        if self._data is not None:
            sizes.append(self._data.sizes)
        return Sizes(*(max(column) for column in zip(*sizes, strict=True)))

    def check(self, changes: Mapping[str, Any]) -> None:
        """See `Lessons.check`."""
        lmbda = float(changes.get("lmbda", 1.0))
        if self._data is None and lmbda < 1.0:
            raise ConfigError(
                f"lmbda={lmbda:g} needs answers of the data, which a run that begins "
                "with lmbda=1 does not read. Fork it with the lmbda that you want."
            )

    def is_on_policy(self, step: int) -> bool:
        """Tell whether a step learns from the student's own answers.

        A matter of seed, step and `lmbda`. It is decided when the step's answers may be asked for,
        `max_staleness` steps ahead, and stays decided if `lmbda` is set meanwhile.
        """
        if step in self._decided:
            return self._decided[step]
        if self._data is None or self._config.lmbda >= 1.0:
            return True
        draw = np.random.default_rng([self._config.seed, 1, step]).random()
        return bool(draw < self._config.lmbda)

    def _nothing_measured(self) -> dict[str, float]:
        return {"rollout_s": 0.0, "rollout_wait_s": 0.0, "sync_s": 0.0, "staleness": 0}

    def measured(self) -> dict[str, float]:
        """See `Lessons.measured`.

        Seconds that the rollout engine wrote, that the students waited for it, and that the weights
        took; steps by which the weights were older; tokens of an answer, and the share cut off.
        """
        found, self._measured = self._measured, self._nothing_measured()
        return found

    # -- before every step ------------------------------------------------------------------------

    def prepare(self, step: int) -> None:
        """Ask for what may be asked, and wait for what this step needs; see `Lessons.prepare`.

        Raises:
            TransportError: The rollout engine died, or could not answer.
        """
        group = self._schedule.group(step)
        for old in [one for one in self.groups if one < group]:
            del self.groups[old]
        ahead = range(step, step + self._config.max_staleness + 1)
        self._decided = {one: self.is_on_policy(one) for one in ahead}
        self._next = max(self._next, group)
        while self._schedule.may_ask(self._next, step) and self._is_wanted(self._next):
            if self.is_on_policy(self._next * self._config.steps_per_rollout):
                self._ask(self._next, step)
            self._next += 1
        while self._asked and (self._asked[0] <= group or self._is_ready()):
            self._receive(self._asked.pop(0))
        if written := self.groups.get(group) if self.is_on_policy(step) else None:
            samples = written.samples
            self._measured["staleness"] = step - min(one.version for one in samples)
            self._measured["answer_tokens"] = float(np.mean([len(one.ids) for one in samples]))
            self._measured["truncated"] = float(np.mean([not one.finished for one in samples]))

    def _is_wanted(self, group: int) -> bool:
        """Whether the run has a step that learns from a group."""
        return group * self._config.steps_per_rollout < (self._config.steps or 0)

    def lesson(self, step: int) -> Lesson | None:
        """See `Lessons.lesson`: a step that is not prepared yet may still become another one."""
        if step not in self._decided:
            return None
        if not self._decided[step]:
            assert self._data is not None
            return self._data.lesson(step)
        group = self.groups.get(self._schedule.group(step))
        return None if group is None else group.lessons.get(step)

    def _ask(self, group: int, step: int) -> None:
        """Hand the weights over if they are due, and ask for a group's answers."""
        if self._schedule.must_sync(group, self._synced):
            self._measured["sync_s"] += self._end.sync(self._student, version=step)
            self._synced = step
        if self._leader:
            rows = self._plan.step(group).rows
            self._end.submit(
                [self._prompts.student.row(row)[0] for row in rows],
                self.sampling(group),
                tag=group,
            )
        self._asked.append(group)

    def sampling(self, group: int) -> Sampling:
        """How a group's answers are drawn."""
        config = self._config
        seed = np.random.SeedSequence([config.seed, group]).generate_state(1, np.uint64)[0]
        return Sampling(
            temperature=config.sampling_temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            max_new_tokens=config.max_new_tokens,
            n=config.samples_per_prompt,
            stop_ids=self._stop_ids,
            seed=int(seed),
            vocab_size=self._student.vocab_size,
        )

    def _is_ready(self, timeout_s: float = 0.0) -> bool:
        """Tell whether the oldest request is answered; all ranks hear the same."""
        return share(self._end.ready(timeout_s) if self._leader else None)

    def _wait(self) -> None:
        """Wait for the oldest request, all ranks together.

        They meet now and then: in one collective the others would wait no longer than its timeout.
        """
        deadline = time.monotonic() + self._config.timeout_s
        while not self._is_ready(SHORT_S):
            if self._leader and time.monotonic() > deadline:
                self._end.receive(0.0)  # raises, and says for what was waited

    def _receive(self, group: int) -> None:
        """Take a group's answers, on all ranks."""
        start = time.perf_counter()
        arrays = None
        self._wait()
        if self._writer is not None:
            got = self._end.receive()
            self._measured["rollout_s"] += got.seconds
            table = self._writer.table(self._plan.step(group).rows, got.samples)
            arrays = {f"sample.{name}": one for name, one in to_arrays(got.samples).items()}
            arrays |= {f"table.{name}": one for name, one in table.arrays().items()}
        arrays = share_arrays(arrays)
        self._measured["rollout_wait_s"] += time.perf_counter() - start
        samples = from_arrays(_of("sample.", arrays))
        table = TokenTable.from_arrays(_of("table.", arrays))
        rows = self._plan.step(group).rows
        made = self.groups[group] = Group(rows, samples)
        steps = self._config.steps_per_rollout
        share_of = len(rows) // steps
        for index in range(steps):
            mine = [
                number
                for number, sample in enumerate(samples)
                if index * share_of <= sample.prompt < (index + 1) * share_of
            ]
            part = table.take(np.array(mine, np.int64))
            parts = 1 if self._config.teacher_batches_per_phase else PARTS
            plan = plan_of(part, self._config, self._world_size, len(mine), parts=parts).step(0)
            made.numbers[group * steps + index] = mine
            made.lessons[group * steps + index] = Lesson(part, plan)

    # -- after every step -------------------------------------------------------------------------

    def learnt(self, step: int, kd: float) -> None:
        """See `Lessons.learnt`."""
        seen = None if self._watch is None else self._watch.take()
        if self._journal is None or not self.is_on_policy(step):
            return
        rang = self._journal.step(
            step + 1, self.of_step(step), seen, kd=kd, logged=self._config.log_rollouts
        )
        if rang and self._config.on_alarm == "pause":
            self._journal.pause(rang)

    def saved(self, step: int) -> None:
        """See `Lessons.saved`: pinned prompts are answered."""
        rows = list(range(min(PINNED, len(self._prompts))))
        samples = self.pinned(rows, step)
        if self._journal is not None:
            self._journal.pinned(step, rows, samples)

    def state(self, step: int) -> None:
        """See `Lessons.state`: nothing."""

    def begin(self, step: int, state: dict[str, Any] | None) -> None:
        """See `Lessons.begin`."""

    def of_step(self, step: int) -> list[tuple[int, Sample]]:
        """Return the answers that a step learnt from, in its table's order: prompt and sample."""
        group = self.groups.get(self._schedule.group(step))
        if group is None:
            return []
        samples = [group.samples[number] for number in group.numbers[step]]
        return [(int(group.rows[sample.prompt]), sample) for sample in samples]

    def pinned(self, rows: Sequence[int], version: int) -> list[Sample]:
        """Let the present weights answer some prompts greedily; all ranks call it together.

        Not while answers are being written: their weights would be lost.
        """
        while self._asked:
            self._receive(self._asked.pop(0))
        if self._synced != version:  # later groups need newer ones in any case
            self._end.sync(self._student, version=version)
            self._synced = version
        arrays: dict[str, Any] | None = None
        if self._leader:
            sampling = Sampling(
                temperature=0.0,
                max_new_tokens=self._config.max_new_tokens,
                stop_ids=self._stop_ids,
                vocab_size=self._student.vocab_size,
            )
            asked = [self._prompts.student.row(row)[0] for row in rows]
            self._end.submit(asked, sampling, tag="pinned")
        self._wait()
        if self._leader:
            arrays = to_arrays(self._end.receive().samples)
        return from_arrays(share_arrays(arrays))


def _of(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): one for name, one in arrays.items() if name.startswith(prefix)
    }
