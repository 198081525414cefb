"""Make a plan: read configs, headers and data, predict, look for what would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab import launch, prepare
from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.hub import resolve_model
from kdflow_lab.jobs import StudentPlace, TeacherInfo, TrainJob
from kdflow_lab.plan import learnt
from kdflow_lab.plan.fit import remedies
from kdflow_lab.plan.memory import Setting
from kdflow_lab.plan.predict import Prediction, free_room, predict
from kdflow_lab.plan.report import Plan
from kdflow_lab.plan.sizes import model_size
from kdflow_lab.plan.workload import Lengths, read_lengths
from kdflow_lab.student.fsdp import computes_in_bf16
from kdflow_lab.teacher import choose_backend

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig, LabConfig

_read: dict[Any, tuple[Lengths, tuple[int, int], str]] = {}
"""Lengths of the last data, so that another plan of the same data reads nothing."""
_KEPT = 4
DATA_FIELDS = (
    "data",
    "split",
    "rows",
    "seed",
    "streaming",
    "max_length",
    "truncation",
    "train_turns",
    "teacher_input",
    "on_bad_rows",
    "on_policy",
    "max_new_tokens",
    "algorithm",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Basis:
    """What every plan of one lab and data starts from.

    Attributes:
        lab: Its options.
        config: The run's, with the algorithm that `auto` comes to.
        setting: Sizes and dtypes.
        lengths: Of the data.
    """

    lab: LabConfig
    config: DistillConfig
    setting: Setting
    lengths: Lengths

    @property
    def key(self) -> str:
        """What runs must have in common to correct each other."""
        return f"{'cuda' if self.setting.on_gpu else 'cpu'} {self.setting.teacher_backend}"

    @property
    def threads(self) -> int:
        """CPU threads of each engine, as `Engines.threads` shares them out."""
        return self.lab.threads_among(self.lab.students + (self.setting.teacher is not None))

    def predict(self, known: learnt.Learnt | None = None) -> Prediction:
        """Predict, corrected by what is known."""
        known = known or learnt.Learnt()
        return predict(
            self.lab,
            self.config,
            self.setting,
            self.lengths,
            known,
            self.threads,
            self.lab.threads_among(self.lab.students),
        )

    def changed(self, of_lab: Mapping[str, Any], of_run: Mapping[str, Any]) -> Basis:
        """The same with other options.

        Raises:
            ConfigError: They contradict the others.
        """
        lab = type(self.lab).parse(**{**self.lab.model_dump(), **of_lab})
        asked = {name: getattr(self.config, name) for name in self.config.model_fields_set}
        config = type(self.config).parse(**{**asked, **of_run})
        setting = setting_of(lab, config, self.setting.vocabulary)
        return dataclasses.replace(self, lab=lab, config=config, setting=setting)


def make_plan(lab: LabConfig, options: dict[str, Any], *, lab_folder: Path | None = None) -> Plan:
    """Plan a run; nothing is started and no weight is read.

    Args:
        lab: The lab's options.
        options: Fields of `DistillConfig`.
        lab_folder: Runtime folder of the living lab, if it lives.

    Raises:
        ConfigError: An option is unknown or does not fit.
        DataError: The data cannot be used.
        ModelError: A model or tokenizer cannot be read.
    """
    basis = read_basis(lab, launch.checked(options))
    folder = Path(lab.dir).expanduser().absolute()
    known = learnt.read(folder, basis.key)
    made = basis.predict(known)
    free = free_room(made.devices, folder, lab_folder)
    rooms = tuple(made.rooms(free))
    found = []
    if not all(room.fits for room in rooms):
        found = remedies(
            basis.lab,
            basis.config,
            longest=int(basis.lengths.longest.max()),
            on_gpu=basis.setting.on_gpu,
            attempt=partial(_attempt, basis, known, folder, lab_folder),
        )
    return Plan(
        prediction=made,
        rooms=rooms,
        remedies=tuple(found),
        learnt_runs=len(known.runs),
        threads=basis.threads,
        notes=tuple(_notes(basis, known, rooms)),
    )


def _attempt(
    basis: Basis,
    known: learnt.Learnt,
    folder: Path,
    lab_folder: Path | None,
    of_lab: Mapping[str, Any],
    of_run: Mapping[str, Any],
) -> Any:
    """Plan with changes; None if these cannot be used."""
    try:
        made = basis.changed(of_lab, of_run).predict(known)
    except (ConfigError, DataError):
        return None
    return tuple(made.rooms(free_room(made.devices, folder, lab_folder)))


def read_basis(lab: LabConfig, config: DistillConfig) -> Basis:
    """Read what a plan starts from: two configs, the headers of two models, the data's lengths.

    Raises:
        DataError: The data cannot be used.
        ModelError: A model or tokenizer cannot be read.
    """
    wanted = [getattr(config, name) for name in DATA_FIELDS]
    key = None
    if all(isinstance(source.data, str) for source in config.sources):
        changed = [_changed_at(source.data) for source in config.sources]
        key = repr((wanted, lab.teacher, lab.student, changed))
    if key is None or key not in _read:
        found = _read_data(lab, config)
        if key is None:
            lengths, vocabulary, algorithm = found
        else:
            while len(_read) >= _KEPT:
                del _read[next(iter(_read))]
            lengths, vocabulary, algorithm = _read.setdefault(key, found)
    else:
        lengths, vocabulary, algorithm = _read[key]
    config = config.model_copy(update={"algorithm": algorithm})
    return Basis(lab, config, setting_of(lab, config, vocabulary), lengths)


def _read_data(lab: LabConfig, config: DistillConfig) -> tuple[Lengths, tuple[int, int], str]:
    """Tokenize the data as both models would read it."""
    job = _job(lab, config)
    met = prepare.meeting(job, config.algorithm)
    return read_lengths(job, config, met), (met.student_size, met.teacher_size), met.algorithm


def _changed_at(data: str) -> float | None:
    try:
        return Path(data).expanduser().stat().st_mtime
    except OSError:
        return None


def _job(lab: LabConfig, config: DistillConfig) -> TrainJob:
    """A run's job as far as reading data needs one: nobody is behind its teacher."""
    student, teacher = resolve_model(lab.student), None
    if config.algorithm != "sft":
        path = resolve_model(lab.teacher)
        size = model_size(path)
        teacher = TeacherInfo(path, "transformers", "", size.hidden, "float32", 0, {})
    place = StudentPlace(rank=0, world_size=1, device="cpu", threads=1, socket=None, rendezvous="")
    return TrainJob(
        place=place,
        run_path="",
        student_path=student,
        teacher=teacher,
        config={},
        trust_remote_code=lab.trust_remote_code,
    )


def setting_of(lab: LabConfig, config: DistillConfig, vocabulary: tuple[int, int]) -> Setting:
    """Read the sizes of both models, and decide dtypes and backend as the engines do."""
    device = lab.placed_on
    on_gpu = device == "cuda"
    teacher = model_size(resolve_model(lab.teacher))
    dtype, backend = lab.teacher_dtype, lab.teacher_backend
    if dtype == "auto":
        dtype = teacher.dtype if on_gpu else "float32"
    if backend == "auto":
        backend, _ = choose_backend(device)
    taught = config.algorithm != "sft"
    narrow = computes_in_bf16(config, torch.device(device))
    return Setting(
        teacher=teacher if taught else None,
        idle_teacher=None if taught else teacher,
        student=model_size(resolve_model(lab.student)),
        teacher_dtype=dtype,
        teacher_backend=backend,
        student_bytes=2 if narrow else 4,
        on_gpu=on_gpu,
        students=lab.students,
        vocabulary=vocabulary,
    )


def _notes(basis: Basis, known: learnt.Learnt, rooms: tuple[Any, ...]) -> list[str]:
    """What was assumed."""
    notes = []
    lengths = basis.lengths
    if len(lengths.student) < lengths.rows:
        notes.append(f"lengths of {len(lengths.student):,} of {lengths.rows:,} rows were read")
    if basis.config.on_policy:
        notes.append(f"every answer counts as {basis.config.max_new_tokens} tokens, the longest")
    if basis.setting.on_gpu:
        notes.append("figures of a GPU are computed, not measured, until a run has corrected them")
    if any(room.free is None for room in rooms):
        notes.append("no such GPU here: what is free on it is not known")
    if known.note:
        notes.append(known.note)
    return notes
