"""Answers of the student that trains to its held-out prompts, between two steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdflow_lab import answer_metrics
from kdflow_lab.data.prompts import prompts
from kdflow_lab.data.rows import form_of
from kdflow_lab.errors import MetricError
from kdflow_lab.evaluate.generation import generate, stop_ids
from kdflow_lab.evaluate.row import data_of, is_right
from kdflow_lab.student.group import gather
from kdflow_lab.student.whole import whole

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.student.fsdp import Student


@dataclass(frozen=True, slots=True)
class Questions:
    """Held-out rows to be answered.

    Attributes:
        prompts: Token ids of each.
        rows: Of the data, which metrics are given.
    """

    prompts: list[list[int]]
    rows: list[dict[str, Any]]

    def with_those_of(self, dataset: Dataset, tokenizer: Any) -> Questions:
        """Return these questions and those of other rows; plain text asks nothing.

        Args:
            dataset: Rows that were tokenized, so they can be read.
            tokenizer: The student's.
        """
        if not len(dataset) or form_of(dataset.column_names, need_response=False) == "text":
            return self
        rows = [data_of(row) for row in dataset]  # type: ignore[arg-type]
        return Questions([*self.prompts, *prompts(dataset, tokenizer)], [*self.rows, *rows])


class HeldOutAnswers:
    """Lets a sharded student answer, and judges the answers; the ranks share the questions."""

    def __init__(
        self,
        student: Student,
        questions: Questions,
        *,
        tokenizer: Any,
        rank: int,
        metrics: Sequence[str] = (),
        max_new_tokens: int,
    ) -> None:
        """Take the questions; every rank does so.

        Args:
            student: The live model.
            questions: The same on every rank.
            tokenizer: The student's.
            rank: This one.
            metrics: Names of further metrics, built in or registered.
            max_new_tokens: Longest answer.

        Raises:
            ConfigError: A metric is unknown.
        """
        self._student, self._questions, self._tokenizer = student, questions, tokenizer
        # long prompts and short ones are dealt out evenly
        order = sorted(range(len(questions.prompts)), key=lambda row: -len(questions.prompts[row]))
        self._mine = order[rank :: student.world_size]
        self._metrics = answer_metrics.asked_for(list(metrics))
        self._max_new_tokens = max_new_tokens

    def score(self) -> tuple[dict[str, Any], list[str]]:
        """Answer all questions with the likeliest tokens; all ranks call it and get the same.

        To be called between two steps, behind `HeldOut.score`. The student is left as it was.

        Returns:
            `answers` (how many), `exact_match` and `metrics` (by name, None for one that failed):
            means over the answers. And what went wrong with metrics, in words.
        """
        with whole(self._student) as model:
            pad = self._student.pad_id
            written = generate(
                model,
                [self._questions.prompts[row] for row in self._mine],
                pad_id=pad,
                stop_ids=stop_ids(model, self._tokenizer),
                max_new_tokens=self._max_new_tokens,
            )
        texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        values, problems = self._judged(texts)
        everything = gather((values, problems))
        problems = [problem for _, theirs in everything for problem in theirs]
        means: dict[str, float | None] = {}
        for name in values:
            by_rank = [theirs[name] for theirs, _ in everything]
            known = [one for part in by_rank for one in part or []]
            means[name] = None if None in by_rank else math.fsum(known) / len(known)
        right = means.pop("exact_match")
        found = {"answers": len(self._questions.prompts), "exact_match": right, "metrics": means}
        return found, problems

    def _judged(self, texts: list[str]) -> tuple[Mapping[str, list[float] | None], list[str]]:
        """Values of this rank's answers by metric, None where it failed; and the failures."""
        rows = [self._questions.rows[row] for row in self._mine]
        judged = zip(rows, texts, strict=True)
        values: dict[str, list[float] | None] = {
            "exact_match": [float(is_right(row, text)) for row, text in judged]
        }
        problems = []
        for name, function in self._metrics.items():
            try:
                values[name] = answer_metrics.apply(name, function, texts, rows, self._mine)
            except MetricError as error:
                values[name] = None
                problems.append(str(error))
        return values, problems
