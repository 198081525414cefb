"""What is installed on this machine, whether it fits together, and what to do where it does not."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Literal

from kdflow_lab.doctor import places
from kdflow_lab.doctor.findings import Diagnosis, Finding
from kdflow_lab.errors import unknown_name
from kdflow_lab.teacher import BACKENDS, choose_backend
from kdflow_lab.teacher.sglang import versions

GIB = 2**30
DEVICES = ("auto", "cpu", "cuda")
INSTALL_CPU = f"pip install --no-deps -r {versions.REQUIREMENTS_CPU}"
INSTALL_GPU = "pip install 'kdflow-lab[sglang]'"


def examine(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    teacher_backend: Literal["auto", "sglang", "transformers"] = "auto",
) -> Diagnosis:
    """Look at this machine; nothing is started, no model is loaded.

    Args:
        device: Where models shall run; `auto` is a GPU where there is one.
        teacher_backend: What the teacher shall run on; SGLang may be missing unless it is named.

    Returns:
        What was found of packages, devices and memory, whether it fits, and what to do.

    Raises:
        ConfigError: There is no such device or backend.
    """
    for kind, value, known in (
        ("device", device, DEVICES),
        ("teacher backend", teacher_backend, BACKENDS),
    ):
        if value not in known:
            raise unknown_name(kind, value, known)
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    return Diagnosis(
        [
            Finding("python", f"{platform.python_version()} on {platform.platform()}"),
            Finding("kdflow-lab", _version("kdflow-lab") or "from a source folder"),
            _torch(device, gpus),
            _package("transformers"),
            _package("ipyparallel"),
            _sglang(device, named=teacher_backend == "sglang"),
            _teacher(device, teacher_backend),
            _memory(),
            places.shared_memory(_backend(device, teacher_backend)),
            places.runtime_folder(),
            places.sockets(),
        ]
    )


def _backend(device: str, asked: str) -> str:
    """Name the backend that a choice comes to."""
    return choose_backend(device)[0] if asked == "auto" else asked


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Finding:
    found = _version(name)
    if found is None:
        return Finding(name, "not installed", False, f"pip install {name}")
    return Finding(name, found)


def _torch(device: str, gpus: list[str]) -> Finding:
    found = _version("torch")
    if found is None:
        return Finding("torch", "not installed", False, "pip install torch")
    import torch

    seen = torch.cuda.device_count()
    listed = ", ".join(torch.cuda.get_device_name(number) for number in range(seen)) or "no GPU"
    text = f"{found}; {listed}; {len(os.sched_getaffinity(0))} cores"
    if device == "cuda" and not seen:
        there = f"the machine has {', '.join(gpus)}" if gpus else "the machine has none"
        advice = f"torch sees no GPU ({there}): install a CUDA build of torch, or use device='cpu'"
        return Finding("torch", text, False, advice)
    return Finding("torch", text)


def _sglang(device: str, *, named: bool) -> Finding:
    here = versions.installed()
    install = INSTALL_CPU if device == "cpu" else INSTALL_GPU
    if here.version is None:
        # a teacher on transformers needs none
        advice = f"for teacher_backend='sglang': {install}"
        return Finding("sglang", "not installed", not named, advice)
    text = f"{here.version} (tested: {versions.tested_range()})"
    if here.misfits:
        wants = ", ".join(
            f"{name}=={wanted} (found {found or 'none'})"
            for name, (found, wanted) in here.misfits.items()
        )
        return Finding("sglang", text, False, f"it pins {wants}; install those versions")
    if here.missing and device == "cuda":
        missing = ", ".join(here.missing)
        return Finding("sglang", text, False, f"it lacks {missing} on a GPU; {INSTALL_GPU}")
    if here.missing:
        text += f"; stand-ins for {', '.join(here.missing)}, which a CPU does not run"
    if not here.tested:
        advice = f"untested with this kdflow-lab; pip install sglang=={versions.LAST_TESTED}"
        return Finding("sglang", text, True, advice)
    return Finding("sglang", text)


def _teacher(device: str, asked: str) -> Finding:
    """Say what the asked backend comes to."""
    name = f"teacher_backend={asked!r}"
    if asked == "auto":
        backend, why = choose_backend(device)
        return Finding(name, f"{backend} on {device} ({why.removeprefix('auto: ')})")
    why = versions.why_not(device) if asked == "sglang" else ""
    advice = "see sglang above, or use teacher_backend='transformers'" if why else ""
    return Finding(name, why or f"{asked} on {device}", not why, advice)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    return Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
