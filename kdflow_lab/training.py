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
from kdflow_lab.beats import Beats
from kdflow_lab.config import DistillConfig
from kdflow_lab.control import Control
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.plan import DataPlan
from kdflow_lab.errors import RunError
from kdflow_lab.guards import SkipGuard
from kdflow_lab.jobs import TrainJob
from kdflow_lab.keeper import Keeper
from kdflow_lab.metrics import memory_bytes, rounded, versions
from kdflow_lab.prepare import shared_tokens, teacher_head_of
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.step import StepResult, distill_step
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.group import gather
from kdflow_lab.student.optimizer import lr_at, make_optimizer
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
        fields = DistillConfig.model_fields
        asked = {name: value for name, value in job.config.items() if name in fields}
        self.config = DistillConfig.parse(**asked)
        self.leader = job.place.rank == 0
        self.step = 0

    def run(self) -> None:
        """Prepare, train, save."""
        config = self.config
        registration.load(self.directory)
        self.phase("reading the data")
        self.table, shared = shared_tokens(self.job, config, self.directory)
        self.plan = DataPlan(
            self.table.lengths,
            self.table.response_lengths,
            batch_size=config.batch_size,
            world_size=self.place.world_size,
            micro_batch_tokens=config.micro_batch_tokens,
            micro_batch_rows=config.micro_batch_rows,
            seed=config.seed,
        )
        if config.steps is None:
            epochs, config.epochs = config.epochs or 1.0, None
            config.steps = max(1, round(epochs * self.plan.steps_per_epoch))
        self.phase("loading the student")
        self.algorithm = make_algorithm(config)
        self.student = Student(
            self.job.student_path,
            config=config,
            mesh=self.mesh,
            vocab_size=shared.size,
            trust_remote_code=self.job.trust_remote_code,
            beside=self.beside,
        )
        if config.packing and self.student.why_padded:
            self.event("warning", message=f"Rows are padded: {self.student.why_padded}.")
        self.optimizer = make_optimizer(self.student.model, config)
        self.teacher_head = teacher_head_of(self.job, shared.size, self.student.device)
        self.keeper = Keeper(self, vocab_size=shared.size)
        begun, line = self.begin()
        self.control = Control(
            self.directory, config, actions=self.keeper.actions, since=begun, line=line
        )
        self.guard = SkipGuard(
            self.directory,
            rank=self.place.rank,
            ranks=self.place.world_size,
            most=config.max_skipped_steps,
            row_index=self.table.row_index,
        )
        with self.connect() as end:
            feed = TeacherFeed(
                self.batches(), end, ahead=config.depth > 0, timeout_s=config.timeout_s
            )
            self.say_started(end)
            self.loop(feed)
        if not self.control.ended and config.eval_every is not None:
            self.keeper.evaluate_once()
        last = self.control.ended or "finished"
        self.keeper.checkpoint(last, must=True)
        self.event(last, step=self.step)

    def beside(self, student_width: int) -> Any:
        """Make what the algorithm trains beside the student, if anything."""
        make = getattr(self.algorithm, "beside", None)
        teacher = self.job.teacher
        if make is None or teacher is None:
            return None
        return make(student_width, teacher.hidden_size)

    def begin(self) -> tuple[int, settings.Timeline]:
        """Load the newest checkpoint; return where the commands begin, and the changes to come."""
        self.step = self.keeper.load()
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
            plan = self.plan.step(self.step)
            lr = lr_at(self.step + 1, self.config.steps or 1, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
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
            skipped = self.guard.saw(
                self.step,
                loss=result.loss,
                grad_norm=result.grad_norm,
                batches=result.batches,
            )
            if skipped:
                try:
                    self.guard.check(self.step)
                except RunError:
                    self.keeper.checkpoint("too many skipped steps")
                    raise

    @contextlib.contextmanager
    def connect(self) -> Iterator[StudentEnd | None]:
        """Open the ring to the teacher for the length of the training."""
        if self.place.socket is None or self.job.teacher is None:
            yield None
            return
        layout = SlotLayout(
            max_tokens=self.plan.max_tokens(),
            max_sequences=self.plan.max_sequences(),
            max_rows=self.plan.max_rows(),
            hidden_size=self.job.teacher.hidden_size,
            dtype_name=self.job.teacher.dtype,
        )
        end = StudentEnd(
            self.place.socket,
            rank=self.place.rank,
            world_size=self.place.world_size,
            layout=layout,
            slots=max(1, self.config.depth),
        )
        try:
            yield end
        finally:
            end.close()

    def batches(self) -> Iterator[MicroBatch | None]:
        """Yield this rank's micro-batches in the plan's order.

        None stands for the end, which `set(steps=…)` may move while the run goes on.
        """
        step = self.step
        while True:
            while step >= (self.config.steps or 0):
                yield None
            for index, by_rank in enumerate(self.plan.step(step).micro_batches):
                rows = by_rank[self.place.rank]
                yield pack(self.table, rows, step=step, index=index)
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
        busy = torch.tensor(teacher_s).double()
        dist.all_reduce(busy)
        if not self.leader:
            return
        step_s, teacher_wait_s, memory = highest.tolist()
        self.directory.metrics(
            rounded(
                {
                    "step": self.step,
                    "attempt": self.job.attempt,
                    "loss": result.loss,
                    "kd": result.kd,
                    "ce": result.ce,
                    "agreement": result.agreement,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "tokens": num_valid_tokens,
                    "total_tokens": result.total_tokens,
                    "tokens_per_s": num_valid_tokens / step_s,
                    "step_s": step_s,
                    "teacher_wait_s": teacher_wait_s,
                    "teacher_busy_s": busy.item(),
                    "memory_bytes": int(memory),
                    "time": time.time(),
                }
            )
        )

    def say_started(self, end: StudentEnd | None) -> None:
        """Write what makes the run real: shards, processes, transport, versions."""
        mine = {"pid": os.getpid(), "shards": self.student.shards()}
        mine["transport"] = None if end is None else end.describe()
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
            teacher=None if teacher is None else teacher.path,
            backend=None if teacher is None else teacher.backend,
            teacher_pid=None if teacher is None else teacher.pid,
            why_backend=None if teacher is None else teacher.why,
            engine_drift=None if teacher is None else teacher.drift,
            packing=not self.student.why_padded,
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
