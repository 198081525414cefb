"""Teacher backends: token ids in, hidden states out, straight into a slot of the ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from kdflow_lab.teacher.base import Teacher

BACKENDS = ("auto", "sglang", "transformers")


def make_teacher(
    backend: str,
    path: str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    gpus: list[int] | None = None,
    sglang: dict[str, Any] | None = None,
    on_death: Callable[[str], None] | None = None,
    **options: Any,
) -> tuple[Teacher, str]:
    """Load a teacher and say how its backend was chosen.

    `auto` is SGLang on a GPU where it is installed and fits, else transformers. On a CPU, SGLang
    runs when it is named.

    Args:
        backend: `auto`, `sglang` or `transformers`.
        path: Folder of the model.
        device: `cpu` or `cuda`.
        threads: CPU threads of the matrix products.
        gpus: CUDA devices, one for each rank of the teacher; None takes the first ones.
        sglang: Options that only SGLang has, as `SglangOptions` takes them.
        on_death: Called with the reason, from a thread, when a process of the teacher's dies.
        **options: `dtype` and `trust_remote_code`, as in `LabConfig`.

    Raises:
        ConfigError: An option does not fit the backend.
        ModelError: The model cannot be loaded.
    """
    from kdflow_lab.teacher.sglang.arguments import SglangOptions

    if backend not in BACKENDS:
        raise unknown_name("teacher backend", backend, BACKENDS)
    asked = SglangOptions(**(sglang or {}))
    chosen, why = (backend, "asked for") if backend != "auto" else choose_backend(device)
    if chosen == "sglang":
        from kdflow_lab.teacher.sglang.backend import SglangTeacher

        teacher = SglangTeacher(
            path,
            device=device,
            threads=threads,
            gpus=gpus,
            options=asked,
            on_death=on_death,
            **options,
        )
        return teacher, f"{why}; {teacher.remark}" if teacher.remark else why
    if asked.asked:
        raise ConfigError(
            f"{', '.join(asked.asked)}: only the SGLang teacher has this, but the teacher runs on "
            f"transformers ({why}). Leave it out, or name teacher_backend='sglang'."
        )
    from kdflow_lab.teacher.transformers import TransformersTeacher

    if gpus:
        device = f"{device}:{gpus[0]}"
    return TransformersTeacher(path, device=device, **options), why


def choose_backend(device: str) -> tuple[str, str]:
    """Choose for `auto`, and say why.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cpu":
        return "transformers", "auto: the default on a CPU"
    from kdflow_lab.teacher.sglang import versions

    if reason := versions.why_not(device):
        return "transformers", f"auto: {reason}"
    return "sglang", f"auto: a GPU, and SGLang {versions.installed().version}"
