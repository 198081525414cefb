"""Lab: a teacher, its students and the engines they live in; what a notebook holds.

`Lab.distill` returns a `Run` at once: the run directory is made here, and the lab's supervisor
(`kdflow_lab.supervisor`), which outlives this kernel, does the rest. What happens then is in the
run directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab import __version__, launch, runtime
from kdflow_lab.client import SupervisorClient
from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.errors import ClusterError, ConfigError, RunError
from kdflow_lab.hub import pin_name, resolve_model
from kdflow_lab.progress import job_progress, phases
from kdflow_lab.run import Run, open_run
from kdflow_lab.rundir import ENDED, RunDirectory
from kdflow_lab.status import LabStatus

if TYPE_CHECKING:
    from datasets import Dataset

    from kdflow_lab.align import Alignment
    from kdflow_lab.doctor import Diagnosis
    from kdflow_lab.evaluate.report import Evaluation
    from kdflow_lab.evaluate.sandbox_report import Sandbox
    from kdflow_lab.widgets.divergence import DivergenceLens


class Lab:
    """A teacher that teaches a student, on the engines of this machine.

    Example:
        >>> lab = kd.Lab(teacher="zoo/teacher", student="zoo/student")
        >>> run = lab.distill(data="zoo/tasks", steps=200, lr=4e-3)
        >>> run.wait()
        >>> lab.evaluate("zoo/tasks", model=run)
        >>> lab.close()
    """

    def __init__(self, teacher: str | Path, student: str | Path, **options: Any) -> None:
        """Describe the lab; nothing starts before `up` or the first use.

        Args:
            teacher: `zoo/teacher`, a local folder, or a hub id.
            student: Likewise; where every run's student starts from.
            **options: The other fields of `kdflow_lab.config.LabConfig`. Run directories lie in
                `dir`, by default `$KDFLOW_RUNS` or `kdflow_runs`.

        Raises:
            ConfigError: An option is unknown or does not fit, or the zoo has no such model.
            ModelError: There is no folder of that name, or it is no model.
        """
        if "KDFLOW_RUNS" in os.environ:
            options.setdefault("dir", os.environ["KDFLOW_RUNS"])
        config = LabConfig.parse(teacher=teacher, student=student, **options)
        names = {"teacher": pin_name(config.teacher), "student": pin_name(config.student)}
        self.config = config.model_copy(update=names)
        self.dir = Path(self.config.dir).expanduser().absolute()
        self._client: SupervisorClient | None = None
        self._runs: dict[Path, Run] = {}
        self._starting = threading.Lock()

    @classmethod
    def attach(cls, where: str | Path | None = None) -> Lab:
        """Take hold of a living lab of this user, such as after a kernel restart.

        Args:
            where: The lab's name, the folder of its runs, or one of its run directories; None
                takes the only one there is.

        Raises:
            ClusterError: There is no such lab, or more than one; the message lists those there are.
        """
        record = runtime.find(where)
        lab = cls(**{**record.config, "dir": record.config["dir"]})
        lab._client = SupervisorClient(record.folder)
        return lab

    # -- up and down ----------------------------------------------------------------------------

    def up(self) -> Lab:
        """Start the engines and load the teacher; does nothing where that is done.

        An engine that died is started again. Where a lab of the same description lives that its
        kernel has left, this one takes hold of it.

        Raises:
            ClusterError: The engines do not start.
            ModelError: The teacher or the student cannot be loaded.
        """
        with phases() as say:
            if self._client is None or not self._client.alive:
                say("starting the lab")
            client = self._connect()
            try:
                client.ask("up", on_phase=say)
            except BaseException:
                self._give_up(client)
                raise
        return self

    def close(self) -> None:
        """End every process of the lab now, an active run included; safe to call twice."""
        with self._starting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def detach(self) -> None:
        """Leave the lab without ending it: an active run goes on, an idle lab ends soon."""
        with self._starting:
            client, self._client = self._client, None
        if client is not None:
            client.detach()

    def _connect(self) -> SupervisorClient:
        """Return the connection to the lab's supervisor, started if need be."""
        with self._starting:
            if self._client is None or not self._client.alive:
                config = self.config.model_copy(update={"dir": str(self.dir)})
                self._client = _orphan(config) or SupervisorClient.start(config)
            return self._client

    def _give_up(self, client: SupervisorClient) -> None:
        """Close a lab that never came up, so that it is down and not half of one."""
        with contextlib.suppress(ClusterError):
            said = client.ask("status")
            if said["state"] == "down" and not said["runs"]:
                self.close()

    @property
    def runtime_dir(self) -> Path | None:
        """The folder of the living lab's sockets; None if the lab is down."""
        client = self._client
        return client.folder if client is not None and client.alive else None

    def run(self, name: str | Path) -> Run:
        """Open a run of this lab's folder, or a run directory, to be resumed or forked here.

        Raises:
            RunError: There is no such run.
        """
        path = (self.dir / name).expanduser().absolute()
        open_run(path)
        return self._held(path)

    @property
    def runs(self) -> list[Run]:
        """The runs of this lab, oldest first, those that other kernels started included."""
        if (status := self._ask_status()) is not None:
            for path in status["runs"]:
                self._held(Path(path))
        return list(self._runs.values())

    def _held(self, path: Path) -> Run:
        """Return this lab's `Run` of a run directory."""
        if path not in self._runs:
            self._runs[path] = Run(path, lab=self)
        return self._runs[path]

    def _ask_status(self) -> dict[str, Any] | None:
        """What the supervisor says; None if the lab is down."""
        client = self._client
        if client is None or not client.alive:
            return None
        with contextlib.suppress(ClusterError):
            return client.ask("status")
        return None

    def __enter__(self) -> Lab:
        """Bring the lab up."""
        return self.up()

    def __exit__(self, *exception: object) -> None:
        """Close the lab."""
        self.close()

    def status(self) -> LabStatus:
        """Tell what the lab is, what of it lives, and what its runs do."""
        said = self._ask_status()
        return LabStatus.of(self.config, self.runtime_dir, said, self.runs)

    def doctor(self) -> Diagnosis:
        """Say what this machine has for the lab, whether it fits together, and what to do.

        The tokenizers of teacher and student are compared, too. Nothing is started and no model is
        loaded; the lab may be up or down.

        Raises:
            ModelError: A tokenizer cannot be loaded, or its tokens are no bytes.
        """
        from kdflow_lab.align import examine_pair
        from kdflow_lab.doctor import examine

        found = examine(self.config.device, self.config.teacher_backend)
        return dataclasses.replace(found, tokenizers=examine_pair(*self._tokenizers()))

    def _tokenizers(self) -> tuple[Any, Any]:
        """The teacher's and the student's."""
        from kdflow_lab.load import load_tokenizer

        trust = self.config.trust_remote_code
        theirs, ours = (
            load_tokenizer(resolve_model(name), trust_remote_code=trust)
            for name in (self.config.teacher, self.config.student)
        )
        return theirs, ours

    def __repr__(self) -> str:
        """One line: who teaches whom, and whether the engines are up."""
        state = "down" if self.runtime_dir is None else f"up ({self.runtime_dir.name})"
        return f"<Lab {self.config.teacher} -> {self.config.student}: {state}>"

    # -- training -------------------------------------------------------------------------------

    def distill(self, **options: Any) -> Run:
        """Start a run and return at once; the engines come up in the background if need be.

        A run that is started while another one trains waits for its turn. A paused one leaves the
        engines to it.

        Args:
            **options: Fields of `kdflow_lab.config.DistillConfig`.

        Raises:
            ConfigError: An option is unknown or does not fit; nothing was started.
        """
        config = launch.checked(options)
        directory = launch.new_run(self.dir, config, self._described())
        return self._start(directory, config)

    def sft(self, **options: Any) -> Run:
        """Fine-tune on the answers in the data alone: the control of every distillation."""
        return self.distill(**{**options, "algorithm": "sft", "kd_ratio": 0.0})

    def resume(self, run: str | Path | Run, **changes: Any) -> Run:
        """Go on with a run that was stopped, has failed or was parked, from its last checkpoint.

        Without a checkpoint it starts again. The number of students may differ from before.

        Args:
            run: A `Run` or its directory.
            **changes: Options as in `Run.set`, which hold from the checkpoint on; `steps=…` lets a
                finished run go on.

        Raises:
            RunError: The run is active, or has nothing left to do.
            ConfigError: It is of other models, or a change does not fit.
        """
        directory = RunDirectory(run.path if isinstance(run, Run) else run)
        self._same_models(directory)
        launch.prepare_resume(directory, changes)
        return self._start(directory)

    def fork(self, run: str | Path | Run, *, step: int | None = None, **changes: Any) -> Run:
        """Start another run from a checkpoint of `run`, with some options changed.

        Weights, optimizer and place in the data are the parent's at that step.

        Args:
            run: A `Run` or its directory; it may be active.
            step: A step that has a checkpoint; by default the last one.
            **changes: Fields of `DistillConfig`; the others are the parent's at that step.

        Raises:
            RunError: There is no such checkpoint, or nothing left to do after it.
            ConfigError: An option is unknown or does not fit, or the run is of other models.
        """
        parent = RunDirectory(run.path if isinstance(run, Run) else run)
        self._same_models(parent)
        directory, config = launch.forked_run(parent, self.dir, self._described(), step, changes)
        return self._start(directory, config)

    def _described(self) -> dict[str, Any]:
        """The fields of the lab's config, as they stand in every run's."""
        return self.config.model_dump(mode="json")

    def _start(self, directory: RunDirectory, config: DistillConfig | None = None) -> Run:
        """Begin an attempt, and hand the run to the supervisor from a thread.

        Args:
            directory: The run's.
            config: Of a new run; it may hold data that only this process has.
        """
        directory.begin(directory.attempts + 1)
        rows = None if config is None or isinstance(config.data, str) else config.data
        threading.Thread(target=self._submit, args=(directory, rows), daemon=True).start()
        return self._held(directory.path)

    def _submit(self, directory: RunDirectory, rows: Any) -> None:
        """Hand a run to the supervisor; whatever goes wrong is said in its directory."""
        try:
            if rows is not None:
                config = directory.config()
                _write_parquet(rows, config["data"], config["split"])
            self._connect().ask("train", run=str(directory.path))
        except Exception as error:
            if directory.last_word().get("event") not in ENDED:
                directory.event("failed", reason=str(error), error=type(error).__name__)

    def _same_models(self, directory: RunDirectory) -> None:
        """Refuse a run of other models."""
        lab = directory.config()["lab"]
        for role in ("teacher", "student"):
            ours, theirs = getattr(self.config, role), lab[role]
            if ours != theirs:
                raise ConfigError(
                    f"The {role} of {directory.path.name} is {theirs!r}, this lab's is {ours!r}. "
                    "Use a lab of the run's own models: kd.open_run(path).resume() makes one."
                )

    # -- looking at models ----------------------------------------------------------------------

    def evaluate(
        self,
        data: Any = "zoo/tasks",
        *,
        model: str | Run = "student",
        split: str = "test",
        rows: int | None = 500,
        seed: int = 1,
        generate: bool = True,
        max_new_tokens: int = 64,
        max_length: int = 2048,
    ) -> Evaluation:
        """Tell how close a model is to the teacher on held-out rows, and how often it is right.

        Args:
            data: As in `distill`.
            model: `"student"` (where runs start from), `"teacher"`, a `Run`, or a model folder.
            split: Split of the data.
            rows: Rows taken; None takes all.
            seed: Chooses the rows where the data is generated.
            generate: Also let the model answer, for exact match; plain text asks nothing.
            max_new_tokens: Longest answer.
            max_length: Most tokens of a row; a longer one is an error.

        Returns:
            `kl` to the teacher and `agreement` of the top token on the reference answers' tokens,
            `perplexity` of those, `exact_match`, the same by kind, and per-row values.

        Raises:
            RunError: A run is using the engines, or the run to evaluate has not ended.
        """
        from kdflow_lab.evaluate.report import Evaluation

        options = {
            "generate": generate,
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
        }
        with self._subject(model, data, split, "evaluating") as (fields, on_progress):
            fields |= {"rows": rows, "seed": seed, "options": options}
            parts = self._connect().ask("score", on_progress=on_progress, **fields)
        return Evaluation.merge(parts, name=_name(model))

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
            _write_parquet(data, file, split)
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


def _orphan(config: LabConfig) -> SupervisorClient | None:
    """Take hold of a living lab of exactly this description that no kernel holds any more.

    A kernel that was restarted and runs its cells again would else wait for a second teacher to
    load beside the first, which is about to end.
    """
    for record in runtime.living():
        if record.config != config.model_dump() or record.version != __version__:
            continue
        with contextlib.suppress(ClusterError):
            client = SupervisorClient(record.folder)
            if len(client.ask("status")["kernels"]) == 1:  # this one
                return client
            client.detach()
    return None


def lab_for(run: Run) -> Lab:
    """Return a lab for a run that nobody holds: a living one of its folder and models, or new."""
    config = run.config["lab"]
    for record in runtime.living():
        same = all(record.config[name] == config[name] for name in ("teacher", "student"))
        if same and Path(record.config["dir"]) == run.path.parent:
            return Lab.attach(record.name)
    return Lab(**{**config, "dir": str(run.path.parent)})


def _name(model: str | Run) -> str:
    """What a model is called in tables."""
    return model if isinstance(model, str) else model.name


def _write_parquet(data: Any, file: str, split: str) -> None:
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
