"""What a lab tells of models: scores, answers, tokens seen by both, and how two tokenizers align.

Nothing here trains. Every method but `align` takes the engines for a moment, between runs.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from kdflow_lab.config import LabConfig
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.hub import resolve_model
from kdflow_lab.progress import job_progress
from kdflow_lab.run import Run
from kdflow_lab.rundir import ENDED

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.align import Alignment
    from kdflow_lab.client import SupervisorClient
    from kdflow_lab.evaluate.report import Evaluation
    from kdflow_lab.evaluate.sandbox_report import Sandbox
    from kdflow_lab.evaluate.table import EvaluationTable
    from kdflow_lab.widgets.divergence import DivergenceLens


class Looks(ABC):
    """The part of a `Lab` that looks at models."""

    config: LabConfig
    last_evaluation: Evaluation | EvaluationTable | None = None
    """What `evaluate` computed last; kept where a metric failed on it."""

    @property
    @abstractmethod
    def runtime_dir(self) -> Path | None:
        """See `Lab.runtime_dir`."""

    @abstractmethod
    def up(self) -> Any:
        """See `Lab.up`."""

    @abstractmethod
    def _connect(self) -> SupervisorClient:
        """See `Lab._connect`."""

    @overload
    def evaluate(
        self,
        data: Any = ...,
        *,
        model: str | Run = ...,
        split: str = ...,
        rows: int | None = ...,
        seed: int = ...,
        generate: bool = ...,
        max_new_tokens: int = ...,
        max_length: int = ...,
        metric: Any = ...,
        against: str | None = ...,
    ) -> Evaluation: ...

    @overload
    def evaluate(
        self,
        data: Any = ...,
        *,
        model: list[Any] | tuple[Any, ...] | Mapping[str, str | Run],
        split: str = ...,
        rows: int | None = ...,
        seed: int = ...,
        generate: bool = ...,
        max_new_tokens: int = ...,
        max_length: int = ...,
        metric: Any = ...,
        against: str | None = ...,
    ) -> EvaluationTable: ...

    def evaluate(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | Run | list[Any] | tuple[Any, ...] | Mapping[str, str | Run] = "student",
        split: str = "test",
        rows: int | None = 500,
        seed: int = 1,
        generate: bool = True,
        max_new_tokens: int = 64,
        max_length: int = 2048,
        metric: Any = None,
        against: str | None = None,
    ) -> Evaluation | EvaluationTable:
        """Tell how close models are to the teacher on held-out rows, and how often they are right.

        Args:
            data: As in `distill`.
            model: `"student"` (where runs start from), `"teacher"`, a `Run`, or a model folder; or
                several, as a list or as a dict of names to models.
            split: Split of the data.
            rows: Rows taken; None takes all.
            seed: Chooses the rows where the data is generated.
            generate: Also let the model answer, for exact match; plain text asks nothing.
            max_new_tokens: Longest answer.
            max_length: Most tokens of a row; a longer one is an error.
            metric: Judges the answers besides exact match: a function of the answer (a text) and
                the row of data (a dict) that returns a number or a bool; a name (`contains`,
                `token_f1`, `rouge_l`, or of `kd.register_metric`), several behind commas; a list of
                such, or a dict of names to them.
            against: Of several models, the name of the one that the others are compared with; by
                default the student, or the first.

        Returns:
            Of one model an `Evaluation`: `kl` to the teacher and `agreement` of the top token on
            the reference answers' tokens, `perplexity` of those, `exact_match`, the same by kind,
            and per-row values. Of several an `EvaluationTable` of the same rows, with bootstrap
            intervals and paired differences.

        Raises:
            RunError: A run is using the engines, or the run to evaluate has not ended.
            ConfigError: A metric or a model cannot be used; nothing was computed.
            MetricError: A metric failed on a row. What was computed is in `last_evaluation`.
        """
        from kdflow_lab import answer_metrics
        from kdflow_lab.evaluate.models import joined, judged, named

        metrics = answer_metrics.asked_for(metric)
        if metrics and not generate:
            raise ConfigError(
                f"{', '.join(metrics)} would judge answers, and generate=False lets none be "
                "written. Leave one of them out."
            )
        options = {
            "generate": generate,
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
        }
        models = named(model, against, _name)
        for one in models.values():
            self._place_of(one)  # a model that is not there is said before any is scored
        found = {}
        for name, one in models.items():
            with self._subject(one, data, split, "evaluating") as (fields, on_progress):
                fields |= {"rows": rows, "seed": seed, "options": options}
                found[name] = self._connect().ask("score", on_progress=on_progress, **fields)
        result = joined(found, against, several=not isinstance(model, str | Run))
        self.last_evaluation = result
        self.last_evaluation = judged(result, metrics, "lab.last_evaluation")
        return self.last_evaluation

    def rollouts(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | Run = "student",
        split: str = "train",
        rows: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
    ) -> Dataset:
        """Let a model answer the prompts of `data`.

        Args:
            data: As in `distill`; only the prompts are used.
            model: `"student"`, `"teacher"`, a `Run`, or a model folder.
            split: Split of the data.
            rows: Rows taken; None takes all.
            seed: Of the rows and of the sampling.
            temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
            max_new_tokens: Longest answer.

        Returns:
            The rows with the last answer of `messages` replaced by the model's, and a column
            `finished` that is false where the answer was cut: data for `distill` and `sft`.
        """
        from datasets import Dataset

        options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        with self._subject(model, data, split, "answering") as (fields, on_progress):
            fields |= {"rows": rows, "seed": seed, "options": options}
            parts = self._connect().ask("write", on_progress=on_progress, **fields)
        answers = sorted((row for part in parts for row in part), key=lambda row: row.pop("row"))
        return Dataset.from_list(answers)

    def align(self, text: str | Sequence[dict[str, str]]) -> Alignment:
        """Show how the tokenizers of teacher and student cut a text; nothing is started.

        Args:
            text: Any text, or a conversation: dicts with `role` and `content`, which each side
                reads through its own chat template.

        Returns:
            Spans that both write in whole tokens, what is in none and why, and the coverage.

        Raises:
            DataError: A chat template does not render the conversation.
            ModelError: A tokenizer cannot be loaded, or its tokens are no bytes.
        """
        from kdflow_lab.align import align, align_conversation

        if isinstance(text, str):
            return align(*self._tokenizers(), text)
        return align_conversation(*self._tokenizers(), text)

    def sandbox(
        self,
        texts: Any,
        losses: str | Sequence[str] = ("forward_kl", "reverse_kl"),
        *,
        model: str | Run = "student",
        temperature: float = 1.0,
        loss_params: dict[str, dict[str, Any]] | None = None,
        top: int = 5,
        rows: int = 4,
        split: str = "test",
        seed: int = 1,
        max_length: int = 2048,
    ) -> Sandbox:
        """See what losses want of a model, token by token, before any training.

        Both models' hidden states of the texts are captured once; another call on the same texts
        and weights, with other losses, computes only those.

        Args:
            texts: A list of texts, whose every token is looked at; a list of rows as in `distill`,
                of which the response tokens are; or the name or path of such data.
            losses: Names of divergences, or `cross_entropy`: what fine-tuning on the texts wants.
            model: `"student"` (where runs start from), `"teacher"`, a `Run`, or a model folder.
            temperature: Divides both models' logits, in the divergences and in the probabilities
                and entropies that are shown.
            loss_params: Loss -> its parameters, such as `{"jsd": {"beta": 0.1}}`.
            top: How many of either model's likeliest tokens, and of the strongest pushes of every
                loss, are listed.
            rows: Rows taken of data; a list is taken whole.
            split: Split of the data.
            seed: Chooses the rows where the data is generated.
            max_length: Most tokens of a row; a longer one is an error.

        Returns:
            Values of every loss at every token (`frame`), the tokens that each loss pushes up and
            down there (`pushes`), and a picture of both (`show`).

        Raises:
            ConfigError: A loss, a parameter or another argument does not fit; nothing was computed.
            RunError: A run is using the engines, or the run to look at has not ended.
        """
        from kdflow_lab.evaluate.sandbox_ask import Asked
        from kdflow_lab.evaluate.sandbox_report import Sandbox

        asked = Asked.checked(
            texts,
            losses,
            loss_params,
            temperature=temperature,
            top=top,
            rows=rows,
            split=split,
            seed=seed,
            max_length=max_length,
        )
        with self._subject(model, asked.data, split, "looking at losses") as (fields, on_progress):
            fields |= asked.fields(fields)
            parts = self._connect().ask("sandbox", on_progress=on_progress, **fields)
        return Sandbox.merge(parts, name=_name(model), losses=asked.names, temperature=temperature)

    def inspect(
        self,
        texts: Any,
        *,
        model: str | Run = "student",
        quantity: str | None = None,
        top: int = 20,
        rows: int = 4,
        split: str = "test",
        seed: int = 1,
        max_length: int = 2048,
    ) -> DivergenceLens:
        """See how a model and the teacher see every token of some texts, prompts included.

        What takes long to load is kept in the engines until a run trains, so that another look is
        quick. Across tokenizers only what compares is known of both, and that is said.

        Args:
            texts: A list of texts; a list of rows as in `distill`; lines of a run's
                `rollouts.jsonl`, whose tokens are looked at as they were sampled; or the name or
                path of data.
            model: `"student"` (where runs start from), `"teacher"`, a `Run`, or a model folder.
            quantity: What tokens are coloured by, such as `reverse_kl`, `surprise` or `rank`; by
                default `forward_kl` where it is known.
            top: How many of either model's likeliest tokens are listed, at most 100.
            rows: Rows taken of data with a name; a list is taken whole.
            split: Split of the data.
            seed: Chooses the rows where the data is generated.
            max_length: Most tokens of a row, at most 8192; a longer one is an error.

        Returns:
            A lens, which shows itself; its `source` has the numbers (`source.frame`,
            `source.worst("surprise")`).

        Raises:
            ConfigError: A quantity or another argument does not fit; nothing was computed.
            DataError: A row cannot be used.
            RunError: A run is using the engines, or the run to look at has not ended.
        """
        from kdflow_lab.evaluate.inspect_ask import AskedTexts, merged
        from kdflow_lab.widgets.divergence import DivergenceLens

        asked = AskedTexts.checked(
            texts,
            quantity=quantity,
            top=top,
            rows=rows,
            split=split,
            seed=seed,
            max_length=max_length,
        )
        with self._subject(model, asked.name, split, "inspecting") as (fields, on_progress):
            fields |= asked.fields()
            parts = self._connect().ask("inspect", on_progress=on_progress, **fields)
        step = model.checkpoints[-1] if isinstance(model, Run) else None
        return DivergenceLens(merged(parts, name=_name(model), step=step), quantity=quantity)

    def _tokenizers(self) -> tuple[Any, Any]:
        """The teacher's and the student's."""
        from kdflow_lab.load import load_tokenizer

        trust = self.config.trust_remote_code
        theirs, ours = (
            load_tokenizer(resolve_model(name), trust_remote_code=trust)
            for name in (self.config.teacher, self.config.student)
        )
        return theirs, ours

    @contextlib.contextmanager
    def _subject(
        self, model: str | Run, data: Any, split: str, verb: str
    ) -> Iterator[tuple[dict, Any]]:
        """Take the engines for looking at a model; give its place and a progress bar."""
        path, is_run = self._place_of(model)
        if self.runtime_dir is None:
            self.up()
        if not isinstance(data, str):
            file = str(Path(self._connect().ask("scratch")) / "data.parquet")
            write_parquet(data, file, split)
            data = file
        elif data and Path(data).expanduser().exists():
            data = str(Path(data).expanduser().absolute())
        fields = {"model": path, "is_run": is_run, "data": data, "split": split}
        with job_progress(f"{verb}: {_name(model)}") as on_progress:
            yield fields, on_progress

    def _place_of(self, model: str | Run) -> tuple[str, bool]:
        """Return the folder behind a model's name and whether it is a run directory."""
        if isinstance(model, Run):
            if model.state not in (*ENDED, "paused"):
                raise RunError(f"{model.name} is {model.state}. Wait for it first: run.wait().")
            return str(model.path), True
        named = {"student": self.config.student, "teacher": self.config.teacher}
        return resolve_model(named.get(model, model)), False


def _name(model: str | Run) -> str:
    """What a model is called in tables."""
    return model if isinstance(model, str) else model.name


def write_parquet(data: Any, file: str, split: str) -> None:
    """Write rows that only this process holds to where the engines can read them."""
    import datasets

    from kdflow_lab.data.sources import load

    rows = load(data, split=split)
    had_bars = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()  # they flash by, in whatever cell is running
    try:
        rows.to_parquet(file)
    finally:
        if had_bars:
            datasets.enable_progress_bars()
