"""The embedded teacher: the decoder of a `transformers` model in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdflow_lab.attention import PackedIndex, decode, use_packed_attention, why_not_packed
from kdflow_lab.errors import ModelError
from kdflow_lab.load import check_fit, load_model, put_parameter, put_weights
from kdflow_lab.losses import Head
from kdflow_lab.teacher import canary
from kdflow_lab.transport.cuda_ipc import Writer, write_rows, writer_on
from kdflow_lab.transport.segment import NO_VERSION

if TYPE_CHECKING:
    from kdflow_lab.transport.request import Request
    from kdflow_lab.transport.segment import WeightSegment

PIECE_TOKENS = 512
"""Tokens that are run at once on a CPU: no product is faster with more, and what the layers make on
the way is as large as the tokens are many."""


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
        self._path, self._trust = path, trust_remote_code
        self._segment: WeightSegment | None = None
        self._load_own()

    def _load_own(self) -> None:
        """Load the model of the folder."""
        model = load_model(self._path, dtype=self.dtype, trust_remote_code=self._trust).eval()
        self.why_padded = why_not_packed(model)
        """Why rows are padded; empty if they are packed."""
        if not self.why_padded:
            use_packed_attention(model)
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        self._pad_id = model.config.get_text_config().pad_token_id or 0
        self._model: Any = model.requires_grad_(False)
        self._drop_head()
        self._decoder = model.get_decoder().to(self.device)
        self.version = NO_VERSION
        """Of the weights: the student's step; `NO_VERSION` for those of the folder."""

    def _drop_head(self) -> None:
        """Give back the memory of what is not the decoder's; its names and shapes stay."""
        kept = {id(one) for one in self._model.get_decoder().parameters()}
        for name, one in list(self._model.named_parameters(remove_duplicate=False)):
            if id(one) not in kept:
                empty = torch.nn.Parameter(torch.empty_like(one, device="meta"), False)
                put_parameter(self._model, name, empty)

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

    # -- following the student --------------------------------------------------------------------

    def weights(self, segment: WeightSegment) -> None:
        """See `Follower.weights`."""
        check_fit(self._model, segment, whose="teacher")
        dtypes = {entry.dtype for entry in segment.entries}
        if dtypes != {str(self.dtype).removeprefix("torch.")}:
            raise ModelError(f"The teacher computes in {self.dtype}, but was given {dtypes}.")
        self._segment, old = segment, self._segment
        if old is not None:
            old.close()

    def load(self, version: int) -> dict[str, float]:
        """See `Follower.load`: on a CPU nothing is copied, the parameters are the segment."""
        if self._segment is None:
            raise ModelError("No weights were handed over yet.")
        self._segment.check(0, version)
        head = Head.among(self._segment.views(0), self._path, dtype=self.dtype)
        put_weights(self._model, self._segment, 0, self.device)
        drift = self.check(head)
        self._drop_head()
        self._segment.check(0, version)
        self.version = version
        return drift

    def restore(self) -> None:
        """See `Follower.restore`: they are read again, so a run costs no copy of them."""
        if self._segment is None:
            return
        self._load_own()
        self._segment.close()
        self._segment, self.asleep = None, False

    @torch.inference_mode()
    def check(self, head: Head) -> dict[str, float]:
        """Compare packed rows and the students' head with the model's own forward pass.

        Args:
            head: The students' copy, on the CPU; the model's own must be whole.

        Raises:
            ModelError: They drifted further than the dtype's rounding explains.
        """
        ids, cu_seqlens = canary.prompts(self._model.config.get_text_config().vocab_size)
        out = torch.empty(len(ids), self.hidden_size, dtype=self.dtype)
        self.hidden_states(ids, cu_seqlens, torch.arange(len(ids)), out)
        ours = canary.recomputed(head, out, ids, cu_seqlens)
        own = [self._own(ids[start:stop]) for start, stop in pairwise(cu_seqlens.tolist())]
        advice = "Please report the model."
        return canary.judge(ours - torch.cat(own), self.dtype, whose="transformers", advice=advice)

    def _own(self, ids: Tensor) -> Tensor:
        """Float32[tokens - 1]: a row's log-probabilities by the model itself, in nats."""
        packed: dict[str, Any] = {}
        if not self.why_padded:
            ends = torch.tensor([0, len(ids)], dtype=torch.int32)
            packed["packed"] = PackedIndex.of(ends, self.device)
        row = ids.to(self.device)[None]
        logits = self._model(input_ids=row, use_cache=False, **packed).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(1, row[0, 1:, None])[:, 0].cpu()

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
        ends = cu_seqlens.tolist()
        most = PIECE_TOKENS
        if self.device.type != "cpu" or self.why_padded or bool((rows[1:] < rows[:-1]).any()):
            most = ends[-1]  # all at once; unsorted rows of a piece are no range of `out`
        done = 0
        for first, last in pieces(ends, most):
            start, stop = ends[first], ends[last]
            wanted = rows if most == ends[-1] else rows[done : int((rows < stop).sum())]
            hidden = decode(
                self._decoder,
                input_ids[start:stop].to(self.device),
                cu_seqlens[first : last + 1] - start,
                packed=not self.why_padded,
                pad_id=self._pad_id,
            )
            # the one write
            write_rows(hidden, wanted - start, out[done : done + len(wanted)])
            done += len(wanted)


def pieces(ends: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose tokens are at most `most`, or that are one row.

    Args:
        ends: Where each row starts, and the tokens of all.
        most: Tokens of a piece.
    """
    first = 0
    for row in range(1, len(ends)):
        if row == len(ends) - 1 or ends[row + 1] - ends[first] > most:
            yield first, row
            first = row


def own_dtype(path: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `auto`: float32 on a CPU; else what the checkpoint's config says."""
    if device.type == "cpu":
        return torch.float32
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
