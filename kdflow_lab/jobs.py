"""What the kernel hands to an engine: plain values only, no tensor and no open thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
        drift: What the canary measured, in nats: `largest`, `mean`, and `tokens` compared. None for
            a backend that computes with the very weights that the students read.
    """

    path: str
    backend: str
    why: str
    hidden_size: int
    dtype: str
    pid: int
    versions: dict[str, str]
    drift: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class StudentPlace:
    """Where one student rank works.

    Attributes:
        rank: 0 … world_size - 1.
        world_size: Number of students.
        device: `cpu` or `cuda`; a rank takes the device of its number.
        threads: CPU threads of its matrix products.
        socket: Where the teacher listens for this job; None if the job needs no teacher.
        rendezvous: A file that does not exist yet, where the ranks find each other.
        aside: Where the teacher listens for what comes between: evaluations of a run whose ring is
            full of later micro-batches. None if the job needs no teacher.
    """

    rank: int
    world_size: int
    device: str
    threads: int
    socket: str | None
    rendezvous: str
    aside: str | None = None


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
