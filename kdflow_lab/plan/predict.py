"""From sizes and a workload to processes, devices and seconds: arithmetic, quick to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.plan import constants, devices, memory, speed
from kdflow_lab.plan.devices import Room
from kdflow_lab.plan.memory import HOST, Process, Setting
from kdflow_lab.plan.sizes import adapter_parameters
from kdflow_lab.plan.workload import Lengths, Workload, workload
from kdflow_lab.transport.layout import ITEM_BYTES

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig, LabConfig
    from kdflow_lab.plan.learnt import Learnt
    from kdflow_lab.plan.speed import StepTime

KEPT_BESIDE = 1
"""Checkpoints on the disk besides `keep_last`: the best by held-out loss, or the one that is being
written."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run is expected to take.

    Attributes:
        processes: Each one's bytes, corrected by earlier runs.
        raw: The same, not corrected.
        time: Seconds of a step, corrected; `raw_step_s` is not.
        raw_step_s: Seconds of a step.
        work: What the data asks.
        checkpoint_bytes: Of one checkpoint.
        disk_bytes: Of all that are kept at once, and of the hidden-state cache.
        slot_bytes: Address space of all rings: what they could hold.
    """

    processes: tuple[Process, ...]
    raw: tuple[Process, ...]
    time: StepTime
    raw_step_s: float
    work: Workload
    checkpoint_bytes: float
    disk_bytes: float
    slot_bytes: int

    def needed(self, device: str) -> float:
        """Bytes on a device, all processes together."""
        return sum(one.total for one in self.processes if one.device == device)

    @property
    def devices(self) -> list[str]:
        """Where something is, host memory first."""
        return list(dict.fromkeys([HOST, *(one.device for one in self.processes)]))

    def rooms(self, free: dict[str, float | None]) -> list[Room]:
        """Compare with what is free."""
        return [Room(name, self.needed(name), free.get(name)) for name in self.devices] + [
            Room("disk", self.disk_bytes, free.get("disk"))
        ]


def predict(
    lab: LabConfig,
    config: DistillConfig,
    setting: Setting,
    lengths: Lengths,
    learnt: Learnt,
    threads: int,
    alone: int,
) -> Prediction:
    """Predict a run.

    Args:
        lab: Where processes are placed.
        config: The run's, checked.
        setting: Sizes and dtypes.
        lengths: Of the data.
        learnt: Corrections by earlier runs.
        threads: CPU threads of each engine.
        alone: Of a student while the teacher is idle.

    Raises:
        DataError: A row is longer than a micro-batch may be.
    """
    work = workload(lengths, config, setting.students)
    raw = tuple(_processes(lab, config, setting, work))
    corrected = tuple(_corrected(one, learnt.memory(one.kind)) for one in raw)
    time = speed.step_time(setting, work, config, threads, alone)
    factor = learnt.time
    scaled = speed.StepTime(
        *(factor * one for one in (time.teacher_s, time.student_s, time.rollout_s, time.step_s))
    )
    one = checkpoint_bytes(setting, config)
    _, slots = memory.ring_bytes(setting, work, config)
    return Prediction(
        processes=corrected,
        raw=raw,
        time=scaled,
        raw_step_s=time.step_s,
        work=work,
        checkpoint_bytes=one,
        disk_bytes=one * (config.keep_last + KEPT_BESIDE) + _cache_bytes(setting, config, work),
        slot_bytes=slots * setting.students,
    )


def _cache_bytes(setting: Setting, config: DistillConfig, work: Workload) -> float:
    """Bytes of the hidden-state cache on the disk: every trained token's row, once."""
    if setting.teacher is None or not config.cache:
        return 0.0
    return work.all_asked * setting.teacher.hidden * ITEM_BYTES[setting.teacher_dtype]


def checkpoint_bytes(setting: Setting, config: DistillConfig) -> float:
    """Bytes of one checkpoint: float32 weights, and two moments of what is trained."""
    size, rank = setting.student, config.lora_r
    if rank is None:
        total = 12.0 * size.parameters
    else:
        # the frozen weights are those of the model's folder; a checkpoint has the adapters alone
        total = 12.0 * adapter_parameters(size, rank, config.lora_target_modules)
    if config.teacher_update_every is not None:
        total += 4.0 * size.parameters
    return total


def _processes(
    lab: LabConfig, config: DistillConfig, setting: Setting, work: Workload
) -> list[Process]:
    """All processes of a run, not corrected."""
    base = {"interpreter and libraries": float(constants.SUPERVISOR)}
    found = [Process("supervisor", HOST, base)]
    engines = _engines(setting, config)
    hub = {"interpreter and libraries": float(constants.CONTROLLER)}
    found.append(Process("controller", HOST, hub))
    libraries = constants.NANNY + constants.LIBRARIES / engines
    found += _teacher(lab, setting, work, libraries)
    for rank in range(setting.students):
        found += _student(lab, config, setting, work, rank, libraries)
    if config.on_policy:
        found += _rollout(lab, config, setting, work, libraries)
    return found


def _engines(setting: Setting, config: DistillConfig) -> int:
    """Engines of the lab: the teacher's lives without work, too."""
    return setting.students + 1 + config.on_policy


def _teacher(lab: LabConfig, setting: Setting, work: Workload, libraries: float) -> list[Process]:
    parts = memory.teacher_parts(setting, work)
    libraries += constants.TEACHER
    if setting.teacher_backend == "sglang":
        libraries += constants.SGLANG
    if not setting.on_gpu:
        return [Process("teacher", HOST, {"interpreter and libraries": libraries, **parts})]
    ranks = lab.tp_size * lab.pp_size * lab.dp_size
    numbers = lab.teacher_devices or list(range(ranks))
    shared = lab.tp_size * lab.pp_size
    found = [Process("teacher", HOST, {"interpreter and libraries": libraries * len(numbers)})]
    for number in numbers:
        own = {name: value / shared for name, value in parts.items()}
        own["CUDA context"] = float(constants.CUDA_CONTEXT)
        if setting.teacher_backend == "sglang":
            own |= _pool(lab, number, sum(own.values()))
        found.append(Process("teacher", f"cuda:{number}", own))
    return found


def _pool(lab: LabConfig, number: int, used: float) -> dict[str, float]:
    """What SGLang's key-value cache takes of a GPU besides: it fills its share of the memory."""
    import torch

    if lab.mem_fraction is None or number >= torch.cuda.device_count():
        return {}
    whole = torch.cuda.get_device_properties(number).total_memory
    return {"key-value cache": max(0.0, lab.mem_fraction * whole - used)}


def _student(
    lab: LabConfig,
    config: DistillConfig,
    setting: Setting,
    work: Workload,
    rank: int,
    libraries: float,
) -> list[Process]:
    name = f"student {rank}"
    parts, moment = memory.student_parts(setting, work, config)
    touched, _ = memory.ring_bytes(setting, work, config)
    host = {"interpreter and libraries": constants.STUDENT + libraries}
    beside = {
        "ring": touched,
        "held-out rows": memory.held_out_bytes(setting, work, config),
        **memory.cache_parts(config, setting, work),
        "tokens": parts.pop("tokens"),
    }
    if config.teacher_update_every is not None:
        parts["mean teacher"] = 4.0 * setting.student.parameters / setting.students
    beside = {part: value for part, value in beside.items() if value}
    if not setting.on_gpu:
        return [Process(name, HOST, {**host, **parts, **beside}, moment)]
    number = lab.student_devices[rank] if lab.student_devices else rank
    parts["CUDA context"] = float(constants.CUDA_CONTEXT)
    return [
        Process(name, HOST, {**host, **beside}),
        Process(name, f"cuda:{number}", parts, moment),
    ]


def _rollout(
    lab: LabConfig, config: DistillConfig, setting: Setting, work: Workload, libraries: float
) -> list[Process]:
    """The engine that writes: the students' weights as handed over, and the key-value cache."""
    size, item = setting.student, 2 if setting.on_gpu else 4
    buffers = 2 if config.max_staleness else 1
    longest = work.sizes.tokens / max(1, work.sizes.sequences)
    places = config.batch_size * max(config.max_new_tokens, min(config.max_length, longest))
    cache = 2.0 * size.layers * size.key * places * item
    logits = 4.0 * 3 * config.batch_size * size.vocabulary
    host = {
        "interpreter and libraries": constants.ROLLOUT + libraries,
        "weights": float(item * size.parameters * buffers),
    }
    work_parts = {"key-value cache": cache, "logits": logits}
    if not setting.on_gpu:
        return [Process("rollout", HOST, {**host, **work_parts})]
    on_gpu = {"weights": float(item * size.parameters), **work_parts}
    on_gpu["CUDA context"] = float(constants.CUDA_CONTEXT)
    return [Process("rollout", HOST, host), Process("rollout", "cuda:0", on_gpu)]


def _corrected(process: Process, factor: float) -> Process:
    if factor == 1.0:
        return process
    parts = {name: factor * value for name, value in process.parts.items()}
    return Process(process.name, process.device, parts, process.moment)


def free_room(
    names: Sequence[str], folder: Path, lab_folder: Path | None = None
) -> dict[str, float | None]:
    """Bytes that are free on each device, and on the disk of the runs."""
    found: dict[str, float | None] = {"disk": devices.free_disk(folder)}
    for name in names:
        if name == HOST:
            found[name] = devices.free_host(lab_folder)
        else:
            found[name] = devices.free_gpu(int(name.removeprefix("cuda:")))
    return found
