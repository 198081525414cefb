"""Teacher backends: token ids in, hidden states out, straight into a slot of the ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError

if TYPE_CHECKING:
    from kdflow_lab.teacher.base import Teacher


def make_teacher(backend: str, path: str, **options: Any) -> tuple[Teacher, str]:
    """Load a teacher and say how its backend was chosen.

    Args:
        backend: `auto` or `transformers`.
        path: Folder of the model.
        **options: `dtype`, `device` and `trust_remote_code`, as in `LabConfig`.

    Raises:
        ConfigError: The backend is not in this version.
        ModelError: The model cannot be loaded.
    """
    if backend == "sglang":
        raise ConfigError(
            "The SGLang teacher is not in this version of kdflow-lab. Use "
            "teacher_backend='transformers', which needs nothing but torch, or 'auto'."
        )
    from kdflow_lab.teacher.transformers import TransformersTeacher

    why = "asked for" if backend == "transformers" else "auto: the one backend of this version"
    return TransformersTeacher(path, **options), why
