"""The SGLang teacher, as the teacher's engine holds it."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdflow_lab.errors import ConfigError, ModelError
from kdflow_lab.load import load_model
from kdflow_lab.losses import Head
from kdflow_lab.teacher.sglang import canary, loader, versions, wire
from kdflow_lab.teacher.sglang.arguments import SglangOptions, server_arguments
from kdflow_lab.teacher.sglang.process import EngineProcess
from kdflow_lab.teacher.transformers import own_dtype
from kdflow_lab.transport.cuda_ipc import Writer, writer_on
from kdflow_lab.transport.segment import NO_VERSION, WeightSegment

if TYPE_CHECKING:
    from kdflow_lab.transport.request import Request
    from kdflow_lab.transport.ring import Ring


class SglangTeacher:
    """Hands slots to SGLang, whose forward hook writes the rows. One thread at a time calls it."""

    backend = "sglang"

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        trust_remote_code: bool = False,
        threads: int | None = None,
        gpus: list[int] | None = None,
        options: SglangOptions | None = None,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        """Start SGLang, load the model, and compare its rows with its own log-probabilities.

        Args:
            path: Folder of the model.
            dtype: `auto` is float32 on a CPU and the checkpoint's own on a GPU.
            device: `cpu` or `cuda`.
            trust_remote_code: Passed on to SGLang.
            threads: CPU threads of its matrix products; on a CPU only.
            gpus: CUDA devices of its ranks; None takes the first ones.
            options: What only this backend has.
            on_death: Called with the reason, from a thread, when SGLang dies.

        Raises:
            ConfigError: An option cannot be used.
            ModelError: SGLang is not installed, cannot start, or its rows drifted.
        """
        if why := versions.why_not(device):
            raise ModelError(
                f"{why}. kdflow doctor says what to install; teacher_backend='transformers' needs "
                "nothing but torch."
            )
        here = versions.installed()
        self.remark = ""
        """What the user should know of this SGLang; empty for nothing."""
        if not here.tested:
            self.remark = (
                f"SGLang {here.version} was not tested with this kdflow-lab, which was tested with "
                f"{versions.tested_range()}"
            )
            warnings.warn(f"{self.remark}.", stacklevel=2)
        own = own_dtype(path, torch.device(device))
        self.dtype = own if dtype == "auto" else getattr(torch, dtype)
        name = str(self.dtype).removeprefix("torch.")
        options = options or SglangOptions()
        arguments = server_arguments(
            path, options, dtype=name, device=device, trust_remote_code=trust_remote_code
        )
        # weights of a teacher that follows its student come by this
        arguments["custom_weight_loader"] = [
            *(arguments.get("custom_weight_loader") or []),
            loader.PATH,
        ]
        self._options, self._trust = options, trust_remote_code
        self._segment: WeightSegment | None = None
        self.version = NO_VERSION
        """Of the weights: the student's step; `NO_VERSION` for those of the folder."""
        self._device = device
        self.writer = _writer(options, gpus) if device == "cuda" else None
        """Its process that writes rows from a GPU; None on a CPU, or if several write."""
        self.asleep = False
        self._path, self._saver = path, "enable_memory_saver" in arguments
        self._numbers = itertools.count(1)
        self._rings: dict[int, int] = {}  # number of a ring, by its object's id
        self.hook_s = 0.0
        """Seconds that the last `fill` spent in the hook."""
        self._process = EngineProcess(
            {"arguments": arguments},
            device=device,
            threads=threads if device == "cpu" else None,
            gpus=gpus,
            on_death=on_death or (lambda _: None),
        )
        try:
            about = self._process.about
            self.hidden_size = int(about["hidden_size"])
            self.batch_tokens = int(about["batch_tokens"])
            self.context_length = int(about["context_length"])
            self.longest = int(about["longest"])
            """Tokens of the longest row that SGLang takes."""
            self.vocab_size = int(about["vocab_size"])
            self.replicas = int(about["replicas"])
            self.pids = [self._process.pid, *about["children"]]
            """The dedicated process and what it started."""
            if about["dtype"] != name:
                raise ModelError(f"SGLang computes in {about['dtype']}, not in {name} as asked.")
            self._head: Head | None = None  # the students' copy; None: read from the folder
            self.drift = self.check()
            """What the canary measured at the start."""
        except BaseException:
            self.close()
            raise

    def fill(self, requests: Sequence[Request]) -> None:
        """See `Teacher.fill`.

        Raises:
            ModelError: SGLang refused a row, did not write all of them, or has died.
        """
        places = [[self._number(one.ring), one.slot, one.sequence] for one in requests]
        self.hook_s = self._process.call({"do": "fill", "requests": places})["hook_s"]

    def sleep(self) -> None:
        """See `Teacher.sleep`: SGLang gives its weights and its key-value cache away.

        Raises:
            ModelError: It was not started so that it can, or has died.
        """
        if self._device == "cuda":
            if not self._saver:
                raise ModelError(
                    "SGLang was not started so that it can give its memory away: teacher and "
                    "students have GPUs of their own (teacher_devices, student_devices), or the "
                    "package torch_memory_saver is not installed. Leave teacher_batches_per_phase "
                    "out, or change that and start the lab again."
                )
            self._process.call({"do": "sleep"})
        self.asleep = True

    def wake(self) -> None:
        """See `Teacher.wake`; the canary looks again.

        Raises:
            ModelError: Its rows drifted, or it has died.
        """
        if self._device == "cuda":
            self._process.call({"do": "wake"})
            self.drift = self.check()
        self.asleep = False

    def score(self, request: Request, replica: int) -> list[list[float]]:
        """Fill one request on one replica and return SGLang's own log-probabilities.

        Returns:
            For each sequence those of its tokens but the first, in nats.
        """
        places = [[self._number(request.ring), request.slot, request.sequence]]
        message: dict[str, Any] = {"do": "score", "requests": places, "replica": replica}
        return self._process.call(message)["logprobs"]

    def check(self) -> dict[str, float]:
        """Let the canary look: rows, head and SGLang's log-probabilities must agree.

        Returns:
            `largest` and `mean` difference in nats, the `tokens` that were compared, and how far
            replicas are apart at most (`replicas_apart`, in nats).

        Raises:
            ModelError: They drifted further than the dtype's rounding explains.
        """
        head = self._head or Head.from_pretrained(self._path, dtype=self.dtype)
        return canary.check(self, head)

    # -- following the student --------------------------------------------------------------------

    def weights(self, segment: WeightSegment) -> None:
        """See `Follower.weights`."""
        options = self._options
        if options.quantization is not None or options.dp_size > 1:
            what = "quantization" if options.quantization is not None else "dp_size"
            raise ConfigError(
                f"A teacher that follows the student (teacher_update_every) cannot have {what}: "
                "SGLang would not take its weights as they are. Leave it out, or use "
                "teacher_backend='transformers'."
            )
        names = [entry.name for entry in segment.entries]
        loader.check_names(names, Path(self._path), instead="teacher_backend='transformers'")
        self._process.call({"do": "weights"}, fd=segment.fd)
        self._segment, old = segment, self._segment
        if old is not None:
            old.close()

    def load(self, version: int) -> dict[str, float]:
        """See `Follower.load`: SGLang's scheduler processes copy them out of the segment."""
        if self._segment is None:
            raise ModelError("No weights were handed over yet.")
        self._segment.check(0, version)  # an error in a scheduler process would end SGLang
        self._process.call({"do": "load", "version": version, "keep": True})
        self._head = Head.among(self._segment.views(0), self._path, dtype=self.dtype)
        self.drift = self.check()
        self.version = version
        return self.drift

    def restore(self) -> None:
        """See `Follower.restore`: the folder's weights go the same way as the student's did."""
        if self._segment is None:
            return
        if self.asleep:
            self.wake()
        own = WeightSegment.create(self._segment.entries)
        model = load_model(self._path, dtype=self.dtype, trust_remote_code=self._trust)
        named = dict(model.named_parameters(remove_duplicate=False))
        for entry in own.entries:
            own.view(entry, 0).copy_(named[entry.name].detach())
        own.stamp(0, NO_VERSION + 1)  # a buffer without a version is not loaded
        self._process.call({"do": "weights"}, fd=own.fd)
        self._process.call({"do": "load", "version": NO_VERSION + 1, "keep": False})
        self._head = None
        self.drift = self.check()
        self.version = NO_VERSION
        own.close()
        self._segment.close()
        self._segment = None

    def close(self) -> None:
        """End SGLang's processes; a second call does nothing."""
        self._process.stop()

    def _number(self, ring: Ring) -> int:
        """Return a ring's number; a new one is handed on, and closed there when it is closed."""
        known = self._rings.get(id(ring))
        if known is not None:
            return known
        number = next(self._numbers)
        self._process.call(wire.opening(number, ring), fd=ring.fd)
        self._rings[id(ring)] = number

        def forget() -> None:
            self._rings.pop(id(ring), None)
            if ring.layout.on_device:
                # The student frees the GPU's memory next: nobody may have it open then.
                with contextlib.suppress(ModelError):
                    self._process.call({"do": "close", "ring": number, "wait": True})
            else:
                self._process.tell({"do": "close", "ring": number})

        ring.on_close(forget)
        return number


def _writer(options: SglangOptions, gpus: list[int] | None) -> Writer | None:
    """Tell which process writes: the first tensor-parallel rank of the last pipeline stage.

    Args:
        options: How many ranks there are.
        gpus: The only devices that SGLang sees, one for each rank; None for all.
    """
    if options.dp_size > 1:
        return None
    rank = (options.pp_size - 1) * options.tp_size
    return writer_on(rank if gpus is None else gpus[rank], gpus)
