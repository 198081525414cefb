"""A lab looked at: the machine, its models, its places, and the engines that are up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.align import examine_pair
from kdflow_lab.config import DistillConfig
from kdflow_lab.doctor import machine, places
from kdflow_lab.doctor.findings import Diagnosis, Finding
from kdflow_lab.doctor.models import Side, examine_models
from kdflow_lab.hub import resolve_model
from kdflow_lab.plan.make import Basis, setting_of
from kdflow_lab.plan.predict import checkpoint_bytes, free_room
from kdflow_lab.plan.workload import Lengths
from kdflow_lab.units import size

if TYPE_CHECKING:
    from kdflow_lab.config import LabConfig

ROW_TOKENS, ROWS = 256, 32
"""The step that memory is compared with: what `lab.plan` says of the user's own data counts."""


def examine_lab(
    config: LabConfig,
    folder: Path,
    tokenizers: tuple[Any, Any],
    *,
    lab_folder: Path | None = None,
    status: dict[str, Any] | None = None,
) -> Diagnosis:
    """Look at everything that a lab needs.

    Args:
        config: The lab's options.
        folder: Of its runs.
        tokenizers: The teacher's and the student's.
        lab_folder: Runtime folder of the living lab; None if it is down.
        status: What its supervisor says; None if it is down.

    Returns:
        The findings, and how the tokenizers relate.

    Raises:
        ModelError: A model or tokenizer cannot be read, or the bytes of its tokens are not known.
    """
    found = machine.examine(config.device, config.teacher_backend)
    sides = [
        Side.read(name, resolve_model(path), tokenizer)
        for name, path, tokenizer in zip(
            ("teacher", "student"), (config.teacher, config.student), tokenizers, strict=True
        )
    ]
    run = DistillConfig.parse(steps=1)
    vocabulary = (sides[1].size.vocabulary, sides[0].size.vocabulary)
    setting = setting_of(config, run, vocabulary)
    ranks = config.tp_size * config.pp_size * config.dp_size
    findings = [
        places.shared_memory(setting.teacher_backend, ranks) if one.name == "/dev/shm" else one
        for one in found.findings
    ]
    findings += [
        places.disk(folder, checkpoint_bytes(setting, run), run.keep_last),
        places.cores(config, on_gpu=setting.on_gpu),
        *_memory(Basis(config, run, setting, _rows()), folder, lab_folder),
        *examine_models(*sides, on_gpu=setting.on_gpu, teacher_dtype=config.teacher_dtype),
        _parity(status),
    ]
    return dataclasses.replace(found, findings=findings, tokenizers=examine_pair(*tokenizers))


def _rows() -> Lengths:
    """A step of rows, half of whose tokens are trained."""
    tokens = np.full(ROWS, ROW_TOKENS, np.int64)
    return Lengths(tokens, tokens, tokens // 2, tokens // 2, ROWS)


def _memory(basis: Basis, folder: Path, lab_folder: Path | None) -> list[Finding]:
    """Compare what is free with a step of rows of a common length."""
    made = basis.predict()
    found = []
    for room in made.rooms(free_room(made.devices, folder, lab_folder)):
        if room.device == "disk":
            continue
        free = "what is free is not known here" if room.free is None else f"{size(room.free)} free"
        text = f"{ROWS} rows of {ROW_TOKENS} tokens a step need {size(room.needed)}; {free}"
        advice = "" if room.fits else "lab.plan(data=…) says what would fit, of your own data"
        found.append(Finding(f"memory of {room.device}", text, room.fits, advice))
    return found


def _parity(status: dict[str, Any] | None) -> Finding:
    """Whether the teacher's engine says what a plain forward pass says."""
    name = "engine parity"
    teacher = None if status is None else status.get("teacher")
    if teacher is None:
        return Finding(name, "the lab is down: lab.up() lets the teacher be compared")
    if teacher.drift is None:
        return Finding(
            name,
            f"the {teacher.backend} teacher is the reference itself: students read its very head",
        )
    largest, mean = teacher.drift["largest"], teacher.drift["mean"]
    return Finding(
        name,
        f"{teacher.backend}'s log-probabilities differ from those that students compute by "
        f"{largest:.2g} nats at most, {mean:.2g} on average over {teacher.drift['tokens']} tokens "
        f"({teacher.dtype}); a larger drift than rounding would have been refused",
    )
