"""Runs in SGLang's scheduler process: loads weights that lie in a segment of the students'.

Named in `ServerArgs.custom_weight_loader`. SGLang hands it one small tensor, a JSON text that says
where the segment is; no weight is pickled, and none passes through another process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdflow_lab.errors import ModelError, TransportError
from kdflow_lab.transport.segment import WeightSegment

NAME = "kdflow"
PATH = f"{__name__}.load"
"""How SGLang is told of `load`."""

_segments: dict[int, WeightSegment] = {}  # the last one, by its inode


def message(path: str, version: int, buffer: int, *, keep: bool = True) -> list[tuple[str, Tensor]]:
    """Build what `load` takes.

    Args:
        path: Where the segment can be opened, such as `/proc/<pid>/fd/<number>`.
        version: Of the weights.
        buffer: Where they lie.
        keep: Stay attached to the segment, since more will come in it.
    """
    text = json.dumps({"path": path, "version": version, "buffer": buffer, "keep": keep})
    return [(NAME, torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))]


def load_into(engine: Any, fd: int, *, version: int, buffer: int, keep: bool = True) -> None:
    """Let every scheduler process of an engine `load`.

    Args:
        engine: SGLang's; in the calling process.
        fd: Of the segment, in the calling process.
        version: Of the weights.
        buffer: Where they lie.
        keep: See `message`.

    Raises:
        TransportError: SGLang did not load them.
    """
    path = f"/proc/{os.getpid()}/fd/{fd}"
    done, why = engine.update_weights_from_tensor(
        message(path, version, buffer, keep=keep), load_format=PATH
    )
    if not done:
        raise TransportError(f"SGLang did not load the weights: {why}")


def load(model: Any, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Load what a `message` names.

    Args:
        model: SGLang's; its `load_weights` takes Hugging Face names and fuses them itself.
        named_tensors: What `message` built.

    Raises:
        TransportError: The segment does not hold this version, or did not while it was read.
    """
    said = json.loads(bytes(dict(named_tensors)[NAME].tolist()))
    segment = _opened(said["path"])
    segment.check(said["buffer"], said["version"])
    model.load_weights(segment.views(said["buffer"]).items())
    segment.check(said["buffer"], said["version"])
    if not said["keep"]:
        _segments.clear()
        segment.close()


def check_names(names: Sequence[str], folder: Path, *, instead: str) -> None:
    """Refuse weights that SGLang would not find a place for: it only logs that, and goes on.

    Args:
        names: Of the student's parameters.
        folder: Of its model: SGLang takes the names of the checkpoint's files.
        instead: Option of the lab that does without SGLang.

    Raises:
        ModelError: A name is not in there, or a head that is tied comes on its own.
    """
    from safetensors import safe_open

    known: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            known |= set(tensors.keys())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tied = config.get("tie_word_embeddings")
    for name in names:
        if name not in known or (tied and name == "lm_head.weight"):
            raise ModelError(
                f"The parameter {name} is not in the files of {folder} under this name, so SGLang "
                f"cannot be given it. Use {instead}."
            )


def _opened(path: str) -> WeightSegment:
    """Map a segment, or find the mapping of the last time."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    number = os.fstat(fd).st_ino
    if number in _segments:
        os.close(fd)
    else:
        for old in _segments.values():
            old.close()
        _segments.clear()
        _segments[number] = WeightSegment.attach(fd)
    return _segments[number]
