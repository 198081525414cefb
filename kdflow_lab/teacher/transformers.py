"""The embedded teacher: the decoder of a `transformers` model in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdflow_lab.attention import decode, use_packed_attention, why_not_packed
from kdflow_lab.load import load_model
from kdflow_lab.transport.cuda_ipc import Writer, write_rows, writer_on

if TYPE_CHECKING:
    from kdflow_lab.transport.request import Request


class TransformersTeacher:
    """Runs packed rows through the decoder alone; the head's product belongs to the students."""

    backend = "transformers"
    asleep = False
    naps = 0
    """How often it was sent to sleep."""
    batch_tokens = 0  # packed rows fill the cores already; together they only take more memory

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        """Load the decoder; the head's memory is given back where it is not tied.

        Args:
            path: Folder of the model.
            dtype: `auto` is float32 on a CPU and the checkpoint's own on a GPU.
            device: `cpu` or `cuda`.
            trust_remote_code: Passed on to `transformers`.

        Raises:
            ModelError: The model cannot be loaded.
        """
        self.device = torch.device(device)
        self.dtype = own_dtype(path, self.device) if dtype == "auto" else getattr(torch, dtype)
        model = load_model(path, dtype=self.dtype, trust_remote_code=trust_remote_code).eval()
        self.why_padded = why_not_packed(model)
        """Why rows are padded; empty if they are packed."""
        if not self.why_padded:
            use_packed_attention(model)
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        self._pad_id = model.config.get_text_config().pad_token_id or 0
        self._decoder = model.get_decoder().to(self.device)

    def fill(self, requests: Sequence[Request]) -> None:
        """See `Teacher.fill`."""
        assert not self.asleep  # `serve` wakes it
        for request in requests:
            with request.ring.writing(request.slot):
                self.hidden_states(request.input_ids, request.cu_seqlens, request.rows, request.out)
        if self.device.type == "cuda":
            # Else an error of the device would fail a later request, and its time not be counted.
            torch.cuda.synchronize(self.device)

    def sleep(self) -> None:
        """See `Teacher.sleep`: the weights move to host memory."""
        self.asleep, self.naps = True, self.naps + 1
        if self.device.type == "cuda":
            self._decoder.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """See `Teacher.wake`."""
        self._decoder.to(self.device)
        self.asleep = False

    def close(self) -> None:
        """See `Teacher.close`: there is nothing but memory, which goes with the last reference."""

    @property
    def writer(self) -> Writer | None:
        """This process, if it writes rows from a GPU."""
        gpu = self.device.index or 0
        return None if self.device.type == "cpu" else writer_on(gpu)

    @torch.inference_mode()
    def hidden_states(
        self, input_ids: Tensor, cu_seqlens: Tensor, rows: Tensor, out: Tensor
    ) -> None:
        """Run packed rows and write the wanted ones.

        Args:
            input_ids: Int32[S] on the CPU, rows end to end; S > 0.
            cu_seqlens: Int32[n + 1] on the CPU: where each row starts, and S.
            rows: Int32[T], positions in [0, S) whose hidden states are wanted.
            out: dtype[T, H], on any device.
        """
        hidden = decode(
            self._decoder,
            input_ids.to(self.device),
            cu_seqlens,
            packed=not self.why_padded,
            pad_id=self._pad_id,
        )
        write_rows(hidden, rows, out)  # the one write


def own_dtype(path: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `auto`: float32 on a CPU; else what the checkpoint's config says."""
    if device.type == "cpu":
        return torch.float32
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
