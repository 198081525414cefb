"""What a rollout backend is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from kdflow_lab.rollout.sampling import Sample, Sampling
    from kdflow_lab.transport.segment import WeightSegment

Progress = Callable[[int, int], None]


class RolloutBackend(Protocol):
    """A model that writes answers with weights that somebody else trains.

    Attributes:
        backend: `transformers` or `sglang`.
        dtype: Of the weights that it takes.
        copies: Whether `load` copies the weights, so that the segment is free again behind it.
        why: What the user should know of it; empty for nothing.
    """

    backend: str
    dtype: torch.dtype
    copies: bool
    why: str

    def weights(self, segment: WeightSegment) -> None:
        """Take the memory where weights will lie; it belongs to the backend from now on.

        Raises:
            ModelError: Its parameters are not those of the backend's model.
        """
        ...

    def load(self, version: int, buffer: int) -> None:
        """Answer with the weights in a buffer from now on.

        Raises:
            ModelError: They cannot be loaded.
            TransportError: The buffer does not hold this version.
        """
        ...

    def generate(
        self,
        prompts: Sequence[NDArray],
        sampling: Sampling,
        *,
        on_progress: Progress | None = None,
    ) -> list[Sample]:
        """Answer every prompt `sampling.n` times.

        Args:
            prompts: Integer[length] each, token ids; none empty.
            sampling: How.
            on_progress: Called with (answers ended, answers in all) now and then; what it raises
                ends the writing.

        Returns:
            The samples, by prompt, then by sample.

        Raises:
            DataError: A prompt cannot be answered.
            ModelError: The model cannot answer.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, processes of its own among it; a second call does nothing."""
        ...
