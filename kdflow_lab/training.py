"""The training loop of one rank: prepare, take steps, obey commands at their boundaries, save."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from kdflow_lab import registration, settings
from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.algorithms.across import make_across
from kdflow_lab.beats import Beats
from kdflow_lab.cache.end import CachingEnd
from kdflow_lab.cache.run import put_before
from kdflow_lab.config import DistillConfig
from kdflow_lab.control import Control
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import RunError
from kdflow_lab.guards import SkipGuard
from kdflow_lab.jobs import TrainJob
from kdflow_lab.keeper import Keeper
from kdflow_lab.lessons import DataLessons, Lessons
from kdflow_lab.losses import Head
from kdflow_lab.mean_teacher.follow import OWN, Update, may_ask, open_mean_teacher
from kdflow_lab.metrics import idle_shares, memory_bytes, rounded, versions
from kdflow_lab.on_policy.open import open_lessons
from kdflow_lab.on_policy.prompts import Prompts
from kdflow_lab.prepare import (
    Meeting,
    shared_meeting,
    shared_prompts,
    shared_tokens,
    teacher_head_of,
)
from kdflow_lab.prepare_stream import open_stream
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.step import StepResult, distill_step
from kdflow_lab.streaming import StreamLessons
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.group import gather, made_once
from kdflow_lab.student.optimizer import lr_at, make_optimizer, set_lr
from kdflow_lab.transport.cuda_ipc import choose_here
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd


class Training:
    """State of one rank's attempt at a run."""

    def __init__(self, job: TrainJob, directory: RunDirectory, mesh: Any, beats: Beats) -> None:
        """Take a part; nothing is read before `run`.

        Args:
            job: This rank's.
            directory: The run's; rank 0 holds its lock.
            mesh: Of all ranks.
            beats: Where this rank says how far it is.
        """
        self.job = job
        self.place = job.place
        self.directory = directory
        self.mesh = mesh
        self.beats = beats
        self.config = DistillConfig.parse(**DistillConfig.fields_in(job.config))
        self.leader = job.place.rank == 0
        self.step = 0

    def run(self) -> None:
        """Prepare, train, save."""
        config = self.config
        registration.load(self.directory)
        self.phase("reading the data")
        met = shared_meeting(self.job, config, self.directory)
        config.algorithm = met.algorithm
        prompts = table = stream = None
        if config.on_policy:
            prompts = shared_prompts(self.job, config, met, self.directory)
        if config.streaming:
            stream = open_stream(self.job, config, met, self.directory)
        elif not config.on_policy or config.lmbda < 1.0:
            table = shared_tokens(self.job, config, met, self.directory)
        self.phase("loading the student")
        self.algorithm = make_algorithm(config)
        if met.pair is not None:
            meet: Any = getattr(self.algorithm, "meet")  # noqa: B009 - algorithms that cross have it
            meet(met.pair, met.student_size, met.teacher_size)
        device = torch.device(self.mesh.device_type)
        self.teacher_head = teacher_head_of(self.job, met.teacher_size, device)
        self.student = Student(
            self.job.student_path,
            config=config,
            mesh=self.mesh,
            vocab_size=met.student_size,
            trust_remote_code=self.job.trust_remote_code,
            beside=self.beside,
        )
        if config.packing and self.student.why_padded:
            self.event("warning", message=f"Rows are padded: {self.student.why_padded}.")
        if self.student.about_head:
            self.event("warning", message=self.student.about_head)
        beside_lr = getattr(self.algorithm, "beside_lr", None)
        self.optimizer = make_optimizer(self.student.model, config, beside_lr=beside_lr)
        follows = (self.job, config, self.student.model, met.differs)
        with (
            open_mean_teacher(*follows, every=config.teacher_update_every) as self.mean_teacher,
            self.lessons_of(met, table or stream, prompts) as self.lessons,
        ):
            self.learn(met)

    def learn(self, met: Meeting) -> None:
        """Train until the last step or until told to stop, and save."""
        config = self.config
        if config.steps is None:
            epochs, config.epochs = config.epochs or 1.0, None
            config.steps = max(1, round(epochs * self.lessons.steps_per_epoch))
        self.keeper = Keeper(self, met)
        begun, line = self.begin()
        self.control = Control(
            self.directory,
            config,
            actions=self.keeper.actions,
            since=begun,
            line=line,
            check=self.lessons.check,
        )
        self.guard = SkipGuard(
            self.directory,
            rank=self.place.rank,
            ranks=self.place.world_size,
            most=config.max_skipped_steps,
        )
        with self.connect() as end:
            feed = TeacherFeed(
                self.batches(),
                end,
                ahead=config.depth > 0,
                timeout_s=config.timeout_s,
                phase=config.teacher_batches_per_phase,
                threads=(self.place.threads, self.place.threads_alone),
            )
            self.say_started(end)
            self.loop(feed)
        if not self.control.ended:
            self.keeper.look_once()
        last = self.control.ended or "finished"
        self.keeper.checkpoint(last, must=True)
        self.event(last, step=self.step)

    @contextlib.contextmanager
    def lessons_of(
        self, met: Meeting, table: TokenTable | StreamLessons | None, prompts: Prompts | None
    ) -> Iterator[Lessons]:
        """Give the run's lessons: rows of the data, or what the student writes."""
        if isinstance(table, StreamLessons):
            with contextlib.closing(table):
                yield table
            return
        data = None if table is None else DataLessons(table, self.config, self.place.world_size)
        if prompts is None:
            assert data is not None
            yield data
            return
        with open_lessons(
            self.job,
            self.config,
            met.pair,
            prompts,
            self.student,
            data,
            directory=self.directory,
            across=make_across(met.pair, met.student_size, met.teacher_size),
        ) as lessons:
            yield lessons

    def beside(self, student_head: Head) -> torch.nn.Module | None:
        """Make what the algorithm trains beside the student, if anything."""
        make = getattr(self.algorithm, "beside", None)
        teacher = self.job.teacher
        if make is None or teacher is None:
            return None
        module = make(student_head.weight.shape[1], teacher.hidden_size)
        begin = getattr(self.algorithm, "init_beside", None)
        if begin is not None and module is not None:
            begin(student_head, self.teacher_head)
        return module

    def begin(self) -> tuple[int, settings.Timeline]:
        """Load the newest checkpoint; return where the commands begin, and the changes to come."""
        self.step = self.keeper.load()
        if self.mean_teacher is not None and self.mean_teacher.version != OWN:
            self.teacher_changed(self.mean_teacher.hand_over(), why="resumed")
        events = self.directory.events()
        starts = [event for event in events if event["event"] == "starting"]
        line = settings.timeline(events)
        # with what holds from the next step on: more steps let a finished run take it
        for name, value in settings.in_force(line, self.step + 1).items():
            setattr(self.config, name, value)
        since = starts[-1].get("control_from", 0) if starts else 0
        return since, [(at, changes) for at, changes in line if at > self.step]

    def loop(self, feed: TeacherFeed) -> None:
        """Take steps until the last one or until told to stop."""
        while self.step < (self.config.steps or 0):
            self.control.at_boundary(self.step + 1, self.keeper.due())
            if self.control.ended:
                return
            start = time.perf_counter()
            self.beats.at(f"in step {self.step + 1}")
            self.lessons.prepare(self.step)
            lesson = self.lessons.lesson(self.step)
            assert lesson is not None  # what `prepare` is for
            plan = lesson.plan
            lr = lr_at(self.step + 1, self.config.steps or 1, self.config)
            set_lr(self.optimizer, lr, self.config)
            result = distill_step(
                self.student,
                self.optimizer,
                self.algorithm,
                feed,
                self.teacher_head if self.algorithm.needs_teacher else None,
                micro_batches=len(plan.micro_batches),
                num_valid_tokens=plan.num_valid_tokens,
                max_grad_norm=self.config.max_grad_norm,
            )
            self.step += 1
            self.record(result, plan.num_valid_tokens, lr, start, feed.take_times())
            self.lessons.learnt(self.step - 1, result.kd)
            if self.mean_teacher is not None and self.mean_teacher.is_due(self.step):
                self.beats.at(f"updating the teacher after step {self.step}")
                self.teacher_changed(self.mean_teacher.update(self.step), why="due")
            skipped = self.guard.saw(
                self.step,
                loss=result.loss,
                grad_norm=result.grad_norm,
                batches=result.batches,
                row_index=lesson.table.row_index,
            )
            if skipped:
                try:
                    self.guard.check(self.step)
                except RunError:
                    self.keeper.checkpoint("too many skipped steps")
                    raise

    def teacher_changed(self, update: Update, *, why: str) -> None:
        """Let all who keep something of the teacher know of its new weights, and say so."""
        assert self.mean_teacher is not None and self.teacher_head is not None
        self.teacher_head = self.mean_teacher.head(self.teacher_head)
        self.keeper.teacher_changed()
        self.event("teacher_updated", step=self.step, why=why, **update._asdict())

    @contextlib.contextmanager
    def connect(self) -> Iterator[StudentEnd | CachingEnd | None]:
        """Open the ring to the teacher for the length of the training, the cache before it."""
        self.cached: CachingEnd | None = None
        if self.place.socket is None or self.job.teacher is None:
            yield None
            return
        layout = SlotLayout(
            max_tokens=self.lessons.sizes.tokens,
            max_sequences=self.lessons.sizes.sequences,
            max_rows=self.lessons.sizes.rows,
            hidden_size=self.job.teacher.hidden_size,
            dtype_name=self.job.teacher.dtype,
        )
        device = torch.device(self.place.torch_device)
        gpu = device.index if device.type == "cuda" else None
        chosen = choose_here(self.place.transport, gpu=gpu, writer=self.job.teacher.writer)
        self.why_transport = chosen.why
        end = StudentEnd(
            self.place.socket,
            rank=self.place.rank,
            world_size=self.place.world_size,
            layout=layout,
            slots=self.config.teacher_batches_per_phase or max(1, self.config.depth),
            gpu=gpu if chosen.transport == "cuda_ipc" else None,
        )
        try:
            if self.config.cache:
                self.cached = self.put_cache_before(end)
            yield self.cached or end
        finally:
            (self.cached or end).close()

    def put_cache_before(self, end: StudentEnd, *, announce: bool = True) -> CachingEnd:
        """Let an end of a ring ask only for what the cache of this run's teacher lacks."""
        return put_before(
            end,
            self.job,
            self.config,
            table=getattr(self.lessons, "table", None),
            once=made_once,
            event=self.event,
            announce=announce,
        )

    def batches(self) -> Iterator[MicroBatch | None]:
        """Yield this rank's micro-batches in the plan's order.

        None stands for the end, which `set(steps=…)` may move while the run goes on, for a lesson
        that is not there yet, and for a step before which the teacher is still to be updated.
        """
        step, every = self.step, self.config.teacher_update_every
        while True:
            while (
                step >= (self.config.steps or 0)
                or not may_ask(step, done=self.step, every=every)
                or (lesson := self.lessons.lesson(step)) is None
            ):
                yield None
            for index, by_rank in enumerate(lesson.plan.micro_batches):
                yield pack(lesson.table, by_rank[self.place.rank], step=step, index=index)
            step += 1

    def record(
        self,
        result: StepResult,
        num_valid_tokens: int,
        lr: float,
        start: float,
        times: tuple[float, float],
    ) -> None:
        """Put the ranks' times together and write the step's line."""
        wait_s, teacher_s = times
        highest = torch.tensor([time.perf_counter() - start, wait_s, memory_bytes()]).double()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        rows, cached = (0, 0) if self.cached is None else self.cached.take_counts()
        sums = torch.tensor([teacher_s, rows, cached]).double()
        dist.all_reduce(sums)
        if not self.leader:
            return
        step_s, teacher_wait_s, memory = highest.tolist()
        teacher_s, rows, cached = sums.tolist()
        followed: dict[str, int] = {}
        if self.mean_teacher is not None:
            followed["teacher_version"] = self.mean_teacher.version  # of this step's rows
        measured = self.lessons.measured()
        if self.cached is not None:
            measured["cached"] = cached / max(1.0, rows)
        spent = {
            "step_s": step_s,
            "teacher_wait_s": teacher_wait_s,
            "teacher_busy_s": teacher_s,
        }
        self.directory.metrics(
            rounded(
                {
                    "step": self.step,
                    "attempt": self.job.attempt,
                    "loss": result.loss,
                    "kd": result.kd,
                    "ce": result.ce,
                    "agreement": result.agreement,
                    **result.extra,
                    **measured,
                    **followed,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "tokens": num_valid_tokens,
                    "total_tokens": result.total_tokens,
                    "tokens_per_s": num_valid_tokens / step_s,
                    **spent,
                    **idle_shares(measured | spent, has_teacher=self.job.teacher is not None),
                    "memory_bytes": int(memory),
                    "time": time.time(),
                }
            )
        )

    def say_started(self, end: StudentEnd | CachingEnd | None) -> None:
        """Write what makes the run real: shards, processes, transport, versions."""
        shards = self.student.shards()
        mine = {"pid": os.getpid(), "shards": shards}
        mine["transport"] = None
        if end is not None:
            mine["transport"] = {**end.describe(), "why": self.why_transport}
        ranks = gather(mine)
        teacher = self.job.teacher
        self.event(
            "started",
            attempt=self.job.attempt,
            from_step=self.step,
            steps=self.config.steps,
            world_size=self.place.world_size,
            device=self.place.device,
            threads=self.place.threads,
            ranks=ranks,
            algorithm=self.config.algorithm,
            teacher=None if teacher is None else teacher.path,
            backend=None if teacher is None else teacher.backend,
            teacher_pid=None if teacher is None else teacher.pid,
            why_backend=None if teacher is None else teacher.why,
            engine_drift=None if teacher is None else teacher.drift,
            packing=not self.student.why_padded,
            parameters=shards["total_elements"],
            trainable_parameters=shards["trainable_elements"],
            versions=versions(),
        )

    def phase(self, text: str) -> None:
        """Say what the run does before its first step."""
        self.beats.at(text)
        self.event("phase", text=text)

    def event(self, name: str, **fields: Any) -> None:
        """Write an event once, by rank 0."""
        if self.leader:
            self.directory.event(name, **fields)
