"""Lab: a teacher, its students and the engines they live in; what a notebook holds.

`Lab.distill` returns a `Run` at once: the run directory is made here, and the lab's supervisor
(`kdflow_lab.supervisor`), which outlives this kernel, does the rest. What happens then is in the
run directory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab import __version__, launch, runtime
from kdflow_lab.cache.report import Captured
from kdflow_lab.client import SupervisorClient
from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.errors import ClusterError, ConfigError, unknown_name
from kdflow_lab.hub import pin_name
from kdflow_lab.looks import Looks, write_parquet
from kdflow_lab.progress import job_progress, phases
from kdflow_lab.run import Run, open_run
from kdflow_lab.rundir import ENDED, RunDirectory
from kdflow_lab.status import LabStatus
from kdflow_lab.sweep import Sweep
from kdflow_lab.sweep import start as start_sweep

if TYPE_CHECKING:
    from kdflow_lab.doctor import Diagnosis
    from kdflow_lab.plan.report import Plan


CAPTURE_OPTIONS = (
    "split",
    "rows",
    "max_length",
    "truncation",
    "train_turns",
    "on_bad_rows",
    "teacher_input",
    "seed",
    "cache_dir",
)
"""Options of `distill` that say which rows the teacher reads."""


class Lab(Looks):
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
        self._submission: threading.Thread | None = None  # of the newest run

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

        Machine, models, tokenizers, folders and memory are looked at; of an engine that is up, how
        far it drifts from a plain forward pass. Nothing is started and no weight is read; the lab
        may be up or down.

        Raises:
            ModelError: A model or tokenizer cannot be read, or its tokens are no bytes.
        """
        from kdflow_lab.doctor.lab import examine_lab

        return examine_lab(
            self.config,
            self.dir,
            self._tokenizers(),
            lab_folder=self.runtime_dir,
            status=self._ask_status(),
        )

    def plan(self, **options: Any) -> Plan:
        """Predict what a run would take before anything starts: memory, time, disk.

        Read are the models' configs, the headers of their safetensors, and the lengths of the data
        (of a sample, if there are many rows). Runs of this folder that were measured correct it.

        Args:
            **options: Fields of `kdflow_lab.config.DistillConfig`, as in `distill`.

        Returns:
            Bytes of every process and device, part by part, seconds of a step, bytes on the disk,
            whether it fits, and if it does not, options with which it would.

        Raises:
            ConfigError: An option is unknown or does not fit.
            DataError: The data cannot be used.
            ModelError: A model or tokenizer cannot be read.
        """
        from kdflow_lab.plan.check import learn_from
        from kdflow_lab.plan.make import make_plan

        learn_from(self.dir)
        config = self.config.model_copy(update={"dir": str(self.dir)})
        return make_plan(config, options, lab_folder=self.runtime_dir)

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

    def capture(self, data: Any = "zoo/tasks", **options: Any) -> Captured:
        """Keep the teacher's hidden states of some data on the disk, without training.

        Runs with `cache=True` on these rows need no teacher then, whatever their loss, temperature
        or rate. Only what is not there is computed; what it takes is said before.

        Args:
            data: As in `distill`.
            **options: Of `distill`, those that say how the data is read: `split`, `rows`,
                `max_length`, `truncation`, `train_turns`, `on_bad_rows`, `teacher_input`, `seed`;
                and `cache_dir`.

        Raises:
            ConfigError: An option is unknown or has nothing to do with the data.
            CacheError: The disk is full (what is whole is kept), or the folder is of another
                teacher.
            RunError: A run is using the engines.
        """
        for name in options:
            if name not in CAPTURE_OPTIONS:
                raise unknown_name("option of capture", name, ("data", *CAPTURE_OPTIONS))
        config = launch.checked({"data": data, "cache": True, **options})
        if self.runtime_dir is None:
            self.up()
        client, start = self._connect(), time.monotonic()
        place = RunDirectory(Path(client.ask("scratch")))
        for rows, file, split in launch.held_here(config, place):
            write_parquet(rows, file, split)
        asked = {
            **config.model_dump(mode="json", exclude={"data"}),
            "data": launch.named(config, place),
            "lab": self._described(),
        }

        def say(text: str) -> None:
            print(f"\r{text}")  # over the line of the bar, in a terminal

        with job_progress("capturing hidden states") as on_progress:
            parts = client.ask("capture", on_phase=say, on_progress=on_progress, config=asked)
        return Captured.merge(parts, seconds=time.monotonic() - start)

    def sweep(self, **options: Any) -> Sweep:
        """Start runs that differ in some options, one after the other, and compare them.

        The first run keeps the teacher's hidden states (`cache`), the others read them, so that the
        teacher is paid for once.

        Args:
            **options: Of `distill`; an option with a list of values varies, and every combination
                is a run. Unless `eval_every` is given, a run is scored at its start and its end.

        Returns:
            The runs, which wait for each other; `wait()`, `best("kl")`, `compare()`.

        Raises:
            ConfigError: An option does not fit, or none varies; nothing was started.
        """
        return start_sweep(options, check=launch.checked, distill=self.distill)

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
        held = [] if config is None else launch.held_here(config, directory)
        arguments = (directory, held, self._submission)
        self._submission = threading.Thread(target=self._submit, args=arguments, daemon=True)
        self._submission.start()
        return self._held(directory.path)

    def _submit(
        self,
        directory: RunDirectory,
        held: list[tuple[Any, str, str]],
        before: threading.Thread | None,
    ) -> None:
        """Hand a run to the supervisor; whatever goes wrong is said in its directory."""
        if before is not None:
            before.join()  # runs train in the order in which they were asked for
        try:
            for rows, file, split in held:
                write_parquet(rows, file, split)
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
