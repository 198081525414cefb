"""What the student wrote, kept: `rollouts.jsonl`, and alarms as events.

A line of `rollouts.jsonl` is one answer, with `schema` 1. First come single numbers, so that a
reader who only sorts answers may stop before the prompt:

    step, attempt       the step that learnt from it; after a resume its last attempt counts
    version             the number of steps that made the weights that wrote it
    row                 the row of the data that its prompt came from
    length              sampled tokens
    finished            false where it was cut
    kl_mean, kl_max     of `kl`; null where nobody looked
    pinned              true for prompts that are answered again at every checkpoint, greedily
    prompt, text        of the conversation as the student reads it, and of the answer
    ids, tokens         the sampled tokens, and the text of each
    logprobs            of the student when it wrote, nats, one a token
    kl                  KL(teacher || student) at each token, nats; null where nobody looked, and
                        for tokens that cannot be compared with a teacher of another tokenizer

and, for answers that somebody looked at, what the teacher would have written instead:

    teacher_ids         the token that it finds likeliest in the place of each, in its own ids;
                        null where it has another tokenizer and no token begins in that place
    teacher_tokens      their texts
    teacher_top_logprobs  their log-probabilities, nats
    teacher_logprobs    what the teacher thinks of the student's own token, nats; null where it has
                        no token of just that text

Files of older versions lack `length`, `kl_mean`, `kl_max`, `tokens` and all about the teacher but
`kl`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.evaluate.sandbox import token_texts
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
        teacher_tokenizer: Any = None,
    ) -> None:
        """Begin.

        Args:
            directory: The run's.
            tokenizer: The student's.
            prompts: The run's.
            most: `max_new_tokens`.
            sampled: Whether tokens are drawn at random.
            attempt: Of the run.
            teacher_tokenizer: The teacher's; None if it is the student's.
        """
        self._directory, self._tokenizer, self._prompts = directory, tokenizer, prompts
        self._most, self._sampled, self._attempt = most, sampled, attempt
        self._theirs = teacher_tokenizer or tokenizer
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
        parts = _by_row(seen)
        first = list(parts) + [row for row in range(len(written)) if row not in parts]
        for row in first[:logged]:
            prompt, sample = written[row]
            self._write(step, prompt, sample, seen, parts.get(row))
        if seen is None:
            return []
        found = self._alarms.saw(self._look(step, written, seen, kd))
        return [self._ring(step, alarm) for alarm in found]

    def pinned(self, step: int, rows: Sequence[int], samples: Sequence[Sample]) -> None:
        """Write down how some prompts are answered after a step."""
        for sample in samples:
            self._write(step, rows[sample.prompt], sample, None, None, pinned=True)

    def pause(self, alarms: Sequence[str]) -> None:
        """Ask the run to pause before its next step."""
        self._directory.command("pause", by=f"alarm: {', '.join(alarms)}")

    def _write(
        self,
        step: int,
        prompt: int,
        sample: Sample,
        seen: Seen | None,
        part: slice | None,
        *,
        pinned: bool = False,
    ) -> None:
        """Append a line; `part` is where its tokens lie in what was seen."""
        ids, _ = self._prompts.student.row(prompt)
        looked = {} if seen is None or part is None else self._looked(seen, part)
        kl = looked.get("kl")
        known = [one for one in kl or [] if one is not None]
        line = {
            "schema": SCHEMA,
            "step": step,
            "attempt": self._attempt,
            "version": sample.version,
            "row": int(self._prompts.student.row_index[prompt]),
            "length": len(sample.ids),
            "finished": sample.finished,
            "kl_mean": round(sum(known) / len(known), DIGITS) if known else None,
            "kl_max": max(known) if known else None,
            **({"pinned": True} if pinned else {}),
            "prompt": self._tokenizer.decode(ids),
            "text": self._tokenizer.decode(sample.ids[: len(sample.ids) - sample.finished]),
            "ids": sample.ids.tolist(),
            "tokens": _texts(self._tokenizer, sample.ids.tolist()),
            "logprobs": _rounded(sample.logprobs),
            "kl": None,
        }
        self._directory.rollout(line | looked)

    def _looked(self, seen: Seen, part: slice) -> dict[str, list[Any]]:
        """What the teacher thinks of an answer's tokens, and what it would have written."""
        ids = [one if one >= 0 else None for one in seen.teacher_top[part].tolist()]
        return {
            "kl": _rounded(seen.kl[part]),
            "teacher_ids": ids,
            "teacher_tokens": _texts(self._theirs, ids),
            "teacher_top_logprobs": _rounded(seen.teacher_top_logprob[part]),
            "teacher_logprobs": _rounded(seen.teacher_label_logprob[part]),
        }

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


def _by_row(seen: Seen | None) -> dict[int, slice]:
    """Where the tokens of each row lie in what was looked at."""
    if seen is None:
        return {}
    ends = np.cumsum(seen.lengths).tolist()
    parts = [slice(end - length, end) for length, end in zip(seen.lengths, ends, strict=True)]
    return dict(zip(seen.data_rows, parts, strict=True))


def _texts(tokenizer: Any, ids: Sequence[int | None]) -> list[str | None]:
    """The text of each token."""
    texts = token_texts(tokenizer, [one for one in ids if one is not None])
    return [None if one is None else texts[one] for one in ids]


def _rounded(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON knows."""
    return [round(one, DIGITS) if math.isfinite(one) else None for one in values.tolist()]
