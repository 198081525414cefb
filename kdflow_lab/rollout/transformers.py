"""The embedded rollout backend: a `transformers` model whose parameters lie in the segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.errors import ModelError
from kdflow_lab.load import check_fit, load_model, put_weights, tie_again
from kdflow_lab.rollout.decode import Decoder
from kdflow_lab.teacher.transformers import own_dtype
from kdflow_lab.transport.segment import NO_VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdflow_lab.rollout.base import Progress
    from kdflow_lab.rollout.sampling import Sample, Sampling
    from kdflow_lab.transport.segment import WeightSegment


class TransformersRollout:
    """Batched, KV-cached decoding in this process."""

    backend = "transformers"

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model; its own weights are version -1.

        Args:
            path: Folder of the student.
            dtype: `auto` is float32 on a CPU and the checkpoint's own on a GPU.
            device: `cpu` or `cuda`.
            trust_remote_code: Passed on to `transformers`.

        Raises:
            ModelError: The model cannot be loaded.
        """
        self.device = torch.device(device)
        self.dtype = own_dtype(path, self.device) if dtype == "auto" else getattr(torch, dtype)
        model = load_model(path, dtype=self.dtype, trust_remote_code=trust_remote_code)
        self._model: Any = model.eval().requires_grad_(False).to(self.device)
        self._decoder = Decoder(self._model)
        self.copies = self.device.type != "cpu"
        self.why = ""
        if self._decoder.why_padded:
            self.why = f"rows are padded: {self._decoder.why_padded}"
        self.version = NO_VERSION
        self._segment: WeightSegment | None = None

    def weights(self, segment: WeightSegment) -> None:
        """See `RolloutBackend.weights`."""
        tie_again(self._model, segment)
        check_fit(self._model, segment, whose="rollout engine")
        self._segment, old = segment, self._segment
        if old is not None:
            old.close()

    def load(self, version: int, buffer: int) -> None:
        """See `RolloutBackend.load`: on a CPU nothing is copied, the parameters are the segment."""
        if self._segment is None:
            raise ModelError("No weights were handed over yet.")
        self._segment.check(buffer, version)
        put_weights(self._model, self._segment, buffer, self.device)
        self._segment.check(buffer, version)
        self.version = version

    def generate(
        self,
        prompts: Sequence[NDArray],
        sampling: Sampling,
        *,
        on_progress: Progress | None = None,
    ) -> list[Sample]:
        """See `RolloutBackend.generate`."""
        return self._decoder.generate(
            prompts, sampling, version=self.version, on_progress=on_progress
        )

    def close(self) -> None:
        """See `RolloutBackend.close`: there is nothing but memory."""
