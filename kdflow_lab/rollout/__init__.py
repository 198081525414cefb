"""Rollouts: the student's own answers, written by an engine of their own with its newest weights.

    student ranks (FSDP2)                         engine "rollout"
    client.py: RolloutEnd            socket       serving.py: Serving
      sync     weights.py ─► segment.py (memfd) ─► the backend's parameters
      submit   prompts (ids)      ─────────────►  transformers.py: decode.py | sglang/
      receive  samples            ◄─────────────  sampling.py: ids, log-probabilities, version

Token ids in, token ids out: what was drawn is what is trained, and nothing is tokenized again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
    from kdflow_lab.rollout.base import RolloutBackend

BACKENDS = ("auto", "sglang", "transformers")


def make_rollout(
    backend: str,
    path: str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    on_death: Callable[[str], None] | None = None,
    **options: Any,
) -> tuple[RolloutBackend, str]:
    """Load a rollout backend and say how it was chosen.

    Args:
        backend: `auto`, `sglang` or `transformers`. `auto` is SGLang on a GPU where it is installed
            and fits, else transformers.
        path: Folder of the student.
        device: `cpu` or `cuda`.
        threads: CPU threads of SGLang's matrix products.
        on_death: Called with the reason, from a thread, when a process of SGLang's dies.
        **options: `dtype` and `trust_remote_code`, as in `LabConfig`.

    Raises:
        ConfigError: There is no such backend.
        ModelError: The model cannot be loaded.
    """
    from kdflow_lab.teacher import choose_backend

    if backend not in BACKENDS:
        raise unknown_name("rollout backend", backend, BACKENDS)
    chosen, why = (backend, "asked for") if backend != "auto" else choose_backend(device)
    made: RolloutBackend
    if chosen == "sglang":
        from kdflow_lab.rollout.sglang.backend import SglangRollout

        made = SglangRollout(path, device=device, threads=threads, on_death=on_death, **options)
    else:
        from kdflow_lab.rollout.transformers import TransformersRollout

        made = TransformersRollout(path, device=device, **options)
    return made, f"{why}; {made.why}" if made.why else why
