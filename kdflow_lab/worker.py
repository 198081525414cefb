"""The loop inside a student engine: one run, from tokenizing to the last checkpoint.

Every rank runs `train` in a thread of its own, which alone drives the process group. Rank 0 is the
run's voice: it holds the lock, reads commands and writes metrics and events.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.align.shared_vocab import SharedVocabulary, shared_vocabulary
from kdflow_lab.config import DistillConfig
from kdflow_lab.control import Control
from kdflow_lab.data import sources
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.plan import DataPlan
from kdflow_lab.data.tokens import TokenTable, tokenize
from kdflow_lab.errors import DataError, RunError
from kdflow_lab.jobs import TrainJob
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head
from kdflow_lab.metrics import memory_bytes, rounded, versions
from kdflow_lab.rundir import ENDED, RunDirectory
from kdflow_lab.step import StepResult, distill_step
from kdflow_lab.student import checkpoint
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.group import gather, share, share_arrays, student_group
from kdflow_lab.student.optimizer import lr_at, make_optimizer
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd

PEERS_WORD_S = 3.0
"""How long a rank whose collective broke waits for the word of the rank that broke it."""


def train(job: TrainJob) -> None:
    """Run one rank of a run to its end; never raises, since nobody would hear it.

    What goes wrong is said in the run's `failed` event by the rank where it happened first.
    """
    directory = RunDirectory(job.run_path)
    try:
        # Thread count, grad mode and autocast belong to a thread: set what this one needs.
        torch.set_num_threads(job.place.threads)
        torch.manual_seed(job.config["seed"])
        if job.place.rank == 0:
            directory.lock()
        with student_group(job.place) as mesh:
            try:
                _Training(job, directory, mesh).run()
            except BaseException as error:
                # Said before the group is destroyed: the peers' broken collectives come after.
                _say_failed(directory, job.place.rank, error)
                raise
    except BaseException as error:
        _say_failed(directory, job.place.rank, error)
    finally:
        directory.unlock()


def _say_failed(directory: RunDirectory, rank: int, error: BaseException) -> None:
    """Write the `failed` event unless the run has ended already.

    A collective that breaks is never the cause: another rank raised or died. That rank, or the
    kernel that watches the processes, gets a moment to say so first.
    """
    broken = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    deadline = time.monotonic() + (PEERS_WORD_S if broken else 0.0)
    with contextlib.suppress(OSError):
        while not any(event["event"] in ENDED for event in directory.events()):
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            reason = str(error) or type(error).__name__
            if broken:
                reason = f"Rank {rank} lost another student, which died or hangs. ({reason})"
            directory.event("failed", reason=reason, rank=rank, error=type(error).__name__)


class _Training:
    """State of one rank's run."""

    def __init__(self, job: TrainJob, directory: RunDirectory, mesh: Any) -> None:
        self.job = job
        self.place = job.place
        self.directory = directory
        self.mesh = mesh
        self.config = DistillConfig.parse(**job.config)
        self.leader = job.place.rank == 0

    def run(self) -> None:
        """Prepare, train, save."""
        config, job = self.config, self.job
        self.phase("reading the data")
        self.table, shared = self.prepare_data()
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
            job.student_path,
            config=config,
            mesh=self.mesh,
            vocab_size=shared.size,
            trust_remote_code=job.trust_remote_code,
        )
        if config.packing and self.student.why_padded:
            self.event("warning", message=f"Rows are padded: {self.student.why_padded}.")
        self.optimizer = make_optimizer(self.student.model, config)
        self.teacher_head = self.load_teacher_head(shared)
        self.control = Control(self.directory, config)
        self.step = 0
        with self.connect() as end:
            feed = TeacherFeed(self.batches(), end, ahead=self.config.depth > 0)
            self.say_started(end)
            self.loop(feed)
        checkpoint.save(self.directory, self.student.model, self.step)
        self.event("stopped" if self.control.stopped else "finished", step=self.step)

    def loop(self, feed: TeacherFeed) -> None:
        """Take steps until the last one or until told to stop."""
        while self.step < (self.config.steps or 0):
            self.control.at_boundary(self.step + 1)
            if self.control.stopped:
                return
            start = time.perf_counter()
            plan = self.plan.step(self.step)
            lr = lr_at(self.step + 1, self.config.steps or 1, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            result = distill_step(
                self.student,
                self.optimizer,
                self.algorithm,
                feed,
                self.teacher_head,
                micro_batches=len(plan.micro_batches),
                num_valid_tokens=plan.num_valid_tokens,
                max_grad_norm=self.config.max_grad_norm,
            )
            self.step += 1
            self.record(result, plan.num_valid_tokens, lr, start, feed.take_times())
            if not math.isfinite(result.grad_norm):
                raise RunError(
                    f"The gradient of step {self.step} is {result.grad_norm}: this step was not "
                    "taken. Lower the learning rate, or look at the data of this step."
                )

    def prepare_data(self) -> tuple[TokenTable, SharedVocabulary]:
        """Tokenize on rank 0 and share; every rank learns of an error."""
        problem, arrays, shared = None, None, None
        if self.leader:
            try:
                table, shared = self.tokenize()
                arrays = table.arrays()
            except Exception as error:
                problem = error
        problem = share(problem)
        if problem is not None:
            raise problem
        return TokenTable.from_arrays(share_arrays(arrays)), share(shared)

    def tokenize(self) -> tuple[TokenTable, SharedVocabulary]:
        """Compare the tokenizers, then turn the data into tokens; rank 0 only."""
        config, job = self.config, self.job
        trust = job.trust_remote_code
        tokenizer = load_tokenizer(job.student_path, trust_remote_code=trust)
        student_rows = Head.from_pretrained(job.student_path, dtype=torch.float32).weight.shape[0]
        shared = SharedVocabulary(student_rows, "")
        if job.teacher is not None:
            teacher_tokenizer = load_tokenizer(job.teacher.path, trust_remote_code=trust)
            teacher_head = Head.from_pretrained(job.teacher.path, dtype=torch.float32)
            shared = shared_vocabulary(
                teacher_tokenizer,
                tokenizer,
                teacher_rows=teacher_head.weight.shape[0],
                student_rows=student_rows,
            )
        if shared.note:
            self.event("warning", message=shared.note)
        dataset = sources.load(config.data, split=config.split, rows=config.rows, seed=config.seed)
        table, report = tokenize(
            dataset,
            tokenizer,
            max_length=config.max_length,
            on_bad_rows=config.on_bad_rows,
            truncation=config.truncation,
            train_turns=config.train_turns,
        )
        self.event("data", **report.summary())
        highest = int(table.input_ids.max())
        if highest >= shared.size:
            raise DataError(
                f"The data holds token id {highest}, but teacher and student share only the ids "
                f"below {shared.size}. Remove the rows with the student's own special tokens."
            )
        return table, shared

    def load_teacher_head(self, shared: SharedVocabulary) -> Head | None:
        """Read the frozen copy of the teacher's head, in the dtype of its hidden rows."""
        if self.job.teacher is None or not self.algorithm.needs_teacher:
            return None
        dtype = getattr(torch, self.job.teacher.dtype)
        head = Head.from_pretrained(self.job.teacher.path, dtype=dtype).to(self.student.device)
        return head.cut(shared.size)

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

    def batches(self) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches in the plan's order, up to the last step asked for."""
        step = 0
        while step < (self.config.steps or 0):
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
        """Add up the ranks' shares and write the step's line."""
        wait_s, teacher_s = times
        sums = torch.cat([result.sums, torch.tensor([result.num_tokens, teacher_s]).double()])
        dist.all_reduce(sums)
        highest = torch.tensor([time.perf_counter() - start, wait_s, memory_bytes()]).double()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        if not self.leader:
            return
        loss, ce, kd, agreement, total_tokens, teacher_busy_s = sums.tolist()
        step_s, teacher_wait_s, memory = highest.tolist()
        self.directory.metrics(
            rounded(
                {
                    "step": self.step,
                    "attempt": 1,
                    "loss": loss,
                    "kd": kd,
                    "ce": ce,
                    "agreement": agreement,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "tokens": num_valid_tokens,
                    "total_tokens": int(total_tokens),
                    "tokens_per_s": num_valid_tokens / step_s,
                    "step_s": step_s,
                    "teacher_wait_s": teacher_wait_s,
                    "teacher_busy_s": teacher_busy_s,
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
            steps=self.config.steps,
            world_size=self.place.world_size,
            device=self.place.device,
            threads=self.place.threads,
            ranks=ranks,
            teacher=None if teacher is None else teacher.path,
            backend=None if teacher is None else teacher.backend,
            teacher_pid=None if teacher is None else teacher.pid,
            packing=not self.student.why_padded,
            versions=versions(),
        )

    def phase(self, text: str) -> None:
        """Say what the run does before its first step."""
        self.event("phase", text=text)

    def event(self, name: str, **fields: Any) -> None:
        """Write an event once, by rank 0."""
        if self.leader:
            self.directory.event(name, **fields)
