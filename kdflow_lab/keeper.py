"""What a run does between steps: checkpoints, evaluations and probes, when due or when asked."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from kdflow_lab import checkpoints
from kdflow_lab.algorithms.across import make_across
from kdflow_lab.errors import RunError
from kdflow_lab.evaluate.answers import HeldOutAnswers
from kdflow_lab.evaluate.held_out import HeldOut
from kdflow_lab.evaluate.probes import Probes
from kdflow_lab.load import load_tokenizer
from kdflow_lab.mean_teacher.follow import OWN
from kdflow_lab.prepare import Meeting, shared_held_out, shared_questions
from kdflow_lab.student import checkpoint
from kdflow_lab.student.group import share

if TYPE_CHECKING:
    from kdflow_lab.control import Action
    from kdflow_lab.data.table import TokenTable
    from kdflow_lab.training import Training


class Keeper:
    """Keeps the state of one rank's training; every rank calls the same methods together."""

    def __init__(self, training: Training, met: Meeting) -> None:
        """Keep `training`, whose student and teacher have `met`."""
        self._training = training
        self._met = met
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._evaluated_step = -1
        self._probed_step = -1
        self._table: TokenTable | None = None
        self._tools: tuple[HeldOut, Probes] | None = None
        self._answers: HeldOutAnswers | None = None
        self._asks = training.config.eval_generate
        self._best: tuple[float, int] | None = None  # (held-out loss, step)
        self.actions: dict[str, Action] = {
            "checkpoint": self.checkpoint,
            "evaluate": self.evaluate,
            "inspect": self.inspect,
        }
        """What `Control` can be asked for; the argument says who asked."""

    # -- checkpoints ----------------------------------------------------------------------------

    def load(self) -> int:
        """Load the newest whole checkpoint of the run; return its step, 0 if there is none.

        A damaged one is left out, and that is said.
        """
        training = self._training
        path, problems = (None, [])
        if training.leader:
            path, problems = checkpoints.newest_whole(training.directory)
            checkpoints.tidy(training.directory, path)
        path, problems = share((path, problems))
        for problem in problems:
            instead = "the start" if path is None else f"the checkpoint of step {path.name}"
            training.event("warning", message=f"{problem} Going on from {instead}.")
        step = 0 if path is None else int(path.name)
        for event in training.directory.events():
            # what an earlier attempt found beyond this step will be found again
            if event["event"] == "evaluated" and event["step"] <= step:
                self._evaluated_step = event["step"]
                self._remember(event, event["step"])
            if event["event"] == "probes" and event["step"] <= step:
                self._probed_step = event["step"]
        if path is None:
            if training.job.attempt > 1:
                text = "There was no whole checkpoint to go on from: the run starts again."
                training.event("warning", message=text)
            return 0
        training.phase(f"loading the checkpoint of step {path.name}")
        saved = checkpoint.load(
            path,
            training.student.model,
            training.optimizer,
            algorithm=self._algorithm_state(),
            teacher=None if training.mean_teacher is None else training.mean_teacher.state,
        )
        if training.mean_teacher is not None:
            training.mean_teacher.version = saved.get("teacher_version", OWN)
        training.lessons.begin(saved["step"], saved.get("data"))
        self._saved_step = saved["step"]
        return saved["step"]

    def checkpoint(self, why: str, *, must: bool = False) -> None:
        """Write a checkpoint of the steps done, unless there is one.

        Args:
            why: Who asked, for the event.
            must: Raise if it cannot be written; otherwise that is a warning, and tried again when
                the next one is due.

        Raises:
            RunError: It cannot be written, and it must.
        """
        training = self._training
        if self._saved_step == training.step:
            return
        training.beats.at(f"writing the checkpoint of step {training.step}")
        self._saved_at = time.monotonic()
        follows: dict[str, Any] = {}
        if (state := training.lessons.state(training.step)) is not None:
            follows["data"] = state
        if training.mean_teacher is not None:
            follows["teacher"] = training.mean_teacher.state
            follows["teacher_version"] = training.mean_teacher.version
        try:
            checkpoint.save(
                training.directory,
                training.step,
                training.student.model,
                training.optimizer,
                algorithm=self._algorithm_state(),
                why=why,
                attempt=training.job.attempt,
                **follows,
            )
        except RunError as error:
            if must:
                raise
            training.event("warning", message=str(error))
            return
        self._saved_step = training.step
        training.lessons.saved(training.step)
        if training.leader:
            best = None if self._best is None else self._best[1]
            checkpoints.prune(training.directory, keep_last=training.config.keep_last, best=best)

    def due(self) -> list[str]:
        """Return the actions that are due before the next step; rank 0's answer counts."""
        training, config = self._training, self._training.config
        step = training.step
        due = []
        by_evals = config.eval_every is not None and step % config.eval_every == 0
        if by_evals and self._evaluated_step != step:
            due.append("evaluate")
        by_probes = config.probe_every is not None and step % config.probe_every == 0
        if by_probes and self._probed_step != step:
            due.append("inspect")
        by_steps = config.checkpoint_every is not None and step % config.checkpoint_every == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = config.checkpoint_minutes is not None and minutes >= config.checkpoint_minutes
        if step > 0 and (by_steps or by_time):
            due.append("checkpoint")
        return due

    def _algorithm_state(self) -> dict[str, Any] | None:
        """The tensors that the algorithm keeps, if it keeps any."""
        state_dict = getattr(self._training.algorithm, "state_dict", None)
        return state_dict() if state_dict is not None else None

    # -- looking at the student -----------------------------------------------------------------

    def evaluate(self, why: str) -> None:
        """Score the student on its held-out rows; a new best gets a checkpoint.

        Raises:
            RunError: There are no held-out rows to score it on.
        """
        training = self._training
        training.beats.at(f"evaluating after step {training.step}")
        start = time.monotonic()
        held_out, _ = self._made_tools()
        scores = {**held_out.score(), **self._answered()}
        self._evaluated_step = training.step
        seconds = round(time.monotonic() - start, 3)
        training.event("evaluated", **{**scores, "step": training.step, "seconds": seconds})
        is_best = self._remember(scores, training.step)
        if is_best and training.step > 0:
            self.checkpoint("best so far")

    def _answered(self) -> dict[str, Any]:
        """Let the student answer the held-out prompts, where that is asked for."""
        training, config = self._training, self._training.config
        if not self._asks or self._table is None:
            return {}
        if self._answers is None:
            questions = shared_questions(training.job, config, self._table)
            if not questions.rows:
                self._asks = False
                text = (
                    "eval_generate has no effect: the held-out rows are plain text and ask nothing."
                )
                training.event("warning", message=text)
                return {}
            self._answers = HeldOutAnswers(
                training.student,
                questions,
                tokenizer=self._tokenizer,
                rank=training.place.rank,
                metrics=config.eval_metrics,
                max_new_tokens=config.eval_max_new_tokens,
            )
        training.beats.at(f"answering held-out prompts after step {training.step}")
        found, problems = self._answers.score()
        for problem in problems:
            training.event("warning", message=f"{problem} The run goes on without this figure.")
        return found

    def look_once(self) -> None:
        """Look at the student as it is at the end in all ways that are due regularly."""
        step, config = self._training.step, self._training.config
        if config.eval_every is not None and self._evaluated_step != step:
            self.evaluate("the end")
        if config.probe_every is not None and self._probed_step != step:
            self.inspect("the end")

    def inspect(self, why: str) -> None:
        """Write the probes of this step.

        Raises:
            RunError: There are no held-out rows to look at.
        """
        training = self._training
        training.beats.at(f"looking at the probes after step {training.step}")
        _, probes = self._made_tools()
        path = probes.write(
            training.directory,
            training.step,
            tokenizer=self._tokenizer if training.leader else None,
        )
        self._probed_step = training.step
        training.event("probes", step=training.step, path=str(path))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """The student's."""
        job = self._training.job
        return load_tokenizer(job.student_path, trust_remote_code=job.trust_remote_code)

    def teacher_changed(self) -> None:
        """Forget what the teacher said of the held-out rows, and its head."""
        self._tools = None

    def _remember(self, scores: dict[str, Any], step: int) -> bool:
        """Note an evaluation; return whether it is the best so far."""
        value = scores.get("kl")
        value = scores.get("ce") if value is None else value
        if value is None or (self._best is not None and value >= self._best[0]):
            return False
        self._best = (value, step)
        return True

    def _made_tools(self) -> tuple[HeldOut, Probes]:
        """Read the held-out rows, the first time."""
        if self._tools is not None:
            return self._tools
        training, config = self._training, self._training.config
        if self._table is None:
            self._table = shared_held_out(training.job, config, self._met)
        table = self._table
        known = {
            "teacher": training.job.teacher,
            "teacher_head": training.teacher_head,
            "place": training.place,
            "timeout_s": config.timeout_s,
            "across": make_across(self._met.pair, self._met.student_size, self._met.teacher_size),
            "before": None,
        }
        if config.cache:
            known["before"] = functools.partial(training.put_cache_before, announce=False)
        probed = table.first(config.probe_rows)
        self._tools = (
            HeldOut(training.student, table, **known),
            Probes(training.student, probed, **known),
        )
        return self._tools
