"""What the kernel hands to an engine: plain values only, no tensor and no open thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdflow_lab.transport.device import Writer


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """What students must know of a teacher that is up.

    Attributes:
        path: Folder of the model, where the students read the head.
        backend: `transformers` or `sglang`.
        why: How the backend was chosen, in words.
        hidden_size: Columns of a hidden row.
        dtype: Name of the rows' dtype, such as `float32`.
        pid: Process of the teacher's engine.
        versions: Of the libraries behind it.
        drift: What the canary measured, as `SglangTeacher.check` returns it. None for a backend
            that computes with the very weights that the students read.
        longest: Most tokens of a row that it takes; None for any.
        writer: Its process that writes hidden rows from a GPU; None on a CPU, or if several write.
    """

    path: str
    backend: str
    why: str
    hidden_size: int
    dtype: str
    pid: int
    versions: dict[str, str]
    drift: dict[str, float] | None = None
    longest: int | None = None
    writer: Writer | None = None


@dataclass(frozen=True, slots=True)
class RolloutInfo:
    """What is to be said of a rollout engine that is up.

    Attributes:
        backend: `transformers` or `sglang`.
        why: How the backend was chosen, in words, and what is to be known of it.
        dtype: Name of the dtype that it computes in.
        pid: Process of the engine.
    """

    backend: str
    why: str
    dtype: str
    pid: int


@dataclass(frozen=True, slots=True)
class StudentPlace:
    """Where one student rank works.

    Attributes:
        rank: 0 … world_size - 1.
        world_size: Number of students.
        device: `cpu` or `cuda`.
        threads: CPU threads of its matrix products.
        threads_alone: Likewise while the teacher rests, since a cache has all that it would say.
        socket: Where the teacher listens for this job; None if the job needs no teacher.
        rendezvous: A file that does not exist yet, where the ranks find each other.
        aside: Where the teacher listens for what comes between: evaluations of a run whose ring is
            full of later micro-batches. None if the job needs no teacher.
        rollouts: Where the rollout engine listens for this job; None if the job needs none.
        weights: Where a teacher that follows the student takes its weights; None for one that
            stays as it is.
        gpu: Which CUDA device; None is the device of the rank's number.
        transport: How the teacher's rows shall travel, as in `LabConfig`.
    """

    rank: int
    world_size: int
    device: str
    threads: int
    socket: str | None
    rendezvous: str
    threads_alone: int = 1
    aside: str | None = None
    rollouts: str | None = None
    weights: str | None = None
    gpu: int | None = None
    transport: str = "auto"

    @property
    def torch_device(self) -> str:
        """What torch calls this rank's device: `cpu`, or `cuda:0` and so on."""
        if self.device == "cpu":
            return "cpu"
        return f"cuda:{self.rank if self.gpu is None else self.gpu}"


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One rank's part in a run.

    Attributes:
        config: The run's `config.yaml`.
        attempt: Counts from 1; every resume is another one.
    """

    place: StudentPlace
    run_path: str
    student_path: str
    teacher: TeacherInfo | None
    config: dict[str, Any]
    attempt: int = 1
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class SubjectJob:
    """One rank's part in looking at a model: scoring it against the teacher, or letting it write.

    Attributes:
        model: Folder of the model, or a run directory whose last checkpoint is taken.
        data: Path or name of the data; `split`, `rows`, `seed` as in `DistillConfig`.
        teacher: None where the model only writes.
    """

    place: StudentPlace
    model: str
    is_run: bool
    data: str
    split: str
    rows: int | None
    seed: int
    teacher: TeacherInfo | None
    options: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
