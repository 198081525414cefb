"""The SGLang rollout backend, as the rollout engine holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.errors import ModelError
from kdflow_lab.losses.head import head_rows
from kdflow_lab.rollout.decode import check_prompts
from kdflow_lab.rollout.sampling import Sample, Sampling
from kdflow_lab.rollout.sglang.process import RolloutProcess
from kdflow_lab.teacher.sglang import loader, versions
from kdflow_lab.teacher.sglang.arguments import SglangOptions, server_arguments
from kdflow_lab.teacher.transformers import own_dtype
from kdflow_lab.transport.segment import NO_VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdflow_lab.rollout.base import Progress
    from kdflow_lab.transport.segment import WeightSegment

GPU_MEMORY = 0.3
"""Share of a GPU's memory for weights and cache: students and teacher may live beside it."""
NO_SEEDS = "SGLang draws without a seed for each request, so the same request gives other samples"


class SglangRollout:
    """Continuous batching by SGLang; weights come straight from the segment."""

    backend = "sglang"
    copies = True

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        trust_remote_code: bool = False,
        threads: int | None = None,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        """Start SGLang with the model's own weights, which are version -1.

        Args:
            path: Folder of the student.
            dtype: `auto` is float32 on a CPU and the checkpoint's own on a GPU.
            device: `cpu` or `cuda`.
            trust_remote_code: Passed on to SGLang.
            threads: CPU threads of its matrix products; on a CPU only.
            on_death: Called with the reason, from a thread, when SGLang dies.

        Raises:
            ModelError: SGLang is not installed, or cannot start.
        """
        if why := versions.why_not(device):
            raise ModelError(
                f"{why}. kdflow doctor says what to install; rollout_backend='transformers' needs "
                "nothing but torch."
            )
        own = own_dtype(path, torch.device(device))
        self.dtype = own if dtype == "auto" else getattr(torch, dtype)
        self.why = NO_SEEDS
        self.version = NO_VERSION
        self._path = path
        self._rows = head_rows(path)
        arguments = server_arguments(
            path,
            SglangOptions(mem_fraction=None if device == "cpu" else GPU_MEMORY),
            dtype=str(self.dtype).removeprefix("torch."),
            device=device,
            trust_remote_code=trust_remote_code,
        )
        arguments["custom_weight_loader"] = [loader.PATH]
        if device != "cpu":
            # answers to one prompt share its cache, and no hook forbids graphs
            del arguments["disable_radix_cache"], arguments["disable_cuda_graph"]
        self._process = RolloutProcess(
            {"arguments": arguments},
            device=device,
            threads=threads if device == "cpu" else None,
            on_death=on_death or (lambda _: None),
        )
        self.pids = [self._process.pid, *self._process.about["children"]]
        """The dedicated process and what it started."""

    def weights(self, segment: WeightSegment) -> None:
        """See `RolloutBackend.weights`."""
        names = [entry.name for entry in segment.entries]
        try:
            loader.check_names(names, Path(self._path), instead="rollout_backend='transformers'")
            self._process.call({"do": "weights"}, fd=segment.fd)
        finally:
            segment.close()  # SGLang's process has a descriptor of its own

    def load(self, version: int, buffer: int) -> None:
        """See `RolloutBackend.load`."""
        self._process.call({"do": "load", "version": version, "buffer": buffer})
        self.version = version

    def generate(
        self,
        prompts: Sequence[NDArray],
        sampling: Sampling,
        *,
        on_progress: Progress | None = None,
    ) -> list[Sample]:
        """See `RolloutBackend.generate`; the seed is not used."""
        check_prompts(prompts, self._rows)
        names = [(prompt, one) for prompt in range(len(prompts)) for one in range(sampling.n)]

        def on_tick(ended: int) -> None:
            if on_progress is not None:
                on_progress(ended, len(names))

        arrays = self._process.generate(
            [prompts[prompt] for prompt, _ in names], sampling_params(sampling), on_tick
        )
        last = sampling.vocab_size
        highest = int(arrays["ids"].max(initial=0))
        if last is not None and highest >= last:
            raise ModelError(
                f"SGLang drew the id {highest}, but the vocabulary ends at {last}: the rows behind "
                "it are padding. Use rollout_backend='transformers', which leaves them out."
            )
        samples, start = [], 0
        for row, name in enumerate(names):
            part = slice(start, start + int(arrays["lengths"][row]))
            ids, logprobs = arrays["ids"][part], arrays["logprobs"][part]
            finished = bool(arrays["finished"][row])
            samples.append(Sample(*name, ids, logprobs, finished, self.version))
            start = part.stop
        return samples

    def close(self) -> None:
        """See `RolloutBackend.close`."""
        self._process.stop()


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    """Translate into SGLang's words; `n` is left out: prompts are repeated instead."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_ids),
    }
