"""What the student wrote, kept: `rollouts.jsonl`, and alarms as events.

A line of `rollouts.jsonl` is one answer, with `schema` 1:

    step, attempt       the step that learnt from it; after a resume its last attempt counts
    version             the number of steps that made the weights that wrote it
    row                 the row of the data that its prompt came from
    prompt, text        of the conversation as the student reads it, and of the answer
    ids                 the sampled tokens
    finished            false where it was cut
    logprobs            of the student when it wrote, nats, one a token
    kl                  KL(teacher || student) at each token, nats; null where nobody looked
    pinned              true for prompts that are answered again at every checkpoint, greedily
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.on_policy.alarms import Alarm, Alarms, Look

if TYPE_CHECKING:
    from kdflow_lab.on_policy.prompts import Prompts
    from kdflow_lab.on_policy.watch import Seen
    from kdflow_lab.rollout.sampling import Sample
    from kdflow_lab.rundir import RunDirectory

SCHEMA = 1
DIGITS = 4


class Journal:
    """Writes what one run's student wrote; on rank 0."""

    def __init__(
        self,
        directory: RunDirectory,
        tokenizer: Any,
        prompts: Prompts,
        *,
        most: int,
        sampled: bool,
        attempt: int = 1,
    ) -> None:
        """Begin.

        Args:
            directory: The run's.
            tokenizer: The student's.
            prompts: The run's.
            most: `max_new_tokens`.
            sampled: Whether tokens are drawn at random.
            attempt: Of the run.
        """
        self._directory, self._tokenizer, self._prompts = directory, tokenizer, prompts
        self._most, self._sampled, self._attempt = most, sampled, attempt
        self._alarms = Alarms()

    def step(
        self,
        step: int,
        written: Sequence[tuple[int, Sample]],
        seen: Seen | None,
        *,
        kd: float,
        logged: int,
    ) -> list[str]:
        """Write some answers of a step down, and judge all; return the alarms that rang.

        Args:
            step: Its number, counted from 1.
            written: Prompt and sample of every row of its table, in order.
            seen: What was seen of some of them.
            kd: The step's divergence, nats a token.
            logged: How many answers go to the file.
        """
        kl_of = _by_row(seen)
        first = list(kl_of) + [row for row in range(len(written)) if row not in kl_of]
        for row in first[:logged]:
            prompt, sample = written[row]
            self._write(step, prompt, sample, kl_of.get(row))
        if seen is None:
            return []
        found = self._alarms.saw(self._look(step, written, seen, kd))
        return [self._ring(step, alarm) for alarm in found]

    def pinned(self, step: int, rows: Sequence[int], samples: Sequence[Sample]) -> None:
        """Write down how some prompts are answered after a step."""
        for sample in samples:
            self._write(step, rows[sample.prompt], sample, None, pinned=True)

    def pause(self, alarms: Sequence[str]) -> None:
        """Ask the run to pause before its next step."""
        self._directory.command("pause", by=f"alarm: {', '.join(alarms)}")

    def _write(
        self, step: int, prompt: int, sample: Sample, kl: np.ndarray | None, *, pinned: bool = False
    ) -> None:
        ids, _ = self._prompts.student.row(prompt)
        line = {
            "schema": SCHEMA,
            "step": step,
            "attempt": self._attempt,
            "version": sample.version,
            "row": int(self._prompts.student.row_index[prompt]),
            "prompt": self._tokenizer.decode(ids),
            "text": self._tokenizer.decode(sample.ids[: len(sample.ids) - sample.finished]),
            "ids": sample.ids.tolist(),
            "finished": sample.finished,
            "logprobs": _rounded(sample.logprobs),
            "kl": None if kl is None else _rounded(kl),
        }
        self._directory.rollout(line | ({"pinned": True} if pinned else {}))

    def _look(
        self, step: int, written: Sequence[tuple[int, Sample]], seen: Seen, kd: float
    ) -> Look:
        ends = np.cumsum(seen.teacher_lengths)
        return Look(
            step=step,
            answers=[sample.ids for _, sample in written],
            finished=[sample.finished for _, sample in written],
            kd=kd,
            most=self._most,
            sampled=self._sampled,
            student_entropy=float(seen.student_entropy.mean()),
            teacher_entropy=float(seen.teacher_entropy.mean()),
            teacher_logprobs=seen.teacher_logprob,
            stop_logprobs=[
                float(seen.teacher_logprob[end - 1])
                for row, end in zip(seen.data_rows, ends, strict=True)
                if written[row][1].finished
            ],
            uniform_entropy=math.log(seen.teacher_width),
        )

    def _ring(self, step: int, alarm: Alarm) -> str:
        self._directory.event(
            "alarm",
            step=step,
            kind=alarm.kind,
            message=alarm.message,
            ids=alarm.answer.tolist(),
            text=self._tokenizer.decode(alarm.answer),
        )
        return alarm.kind


def _by_row(seen: Seen | None) -> dict[int, np.ndarray]:
    """The divergences at the tokens of each row that was looked at."""
    if seen is None:
        return {}
    ends = np.cumsum(seen.lengths)
    parts = np.split(seen.kl, ends[:-1])
    return dict(zip(seen.data_rows, parts, strict=True))


def _rounded(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON knows."""
    return [round(one, DIGITS) if math.isfinite(one) else None for one in values.tolist()]
