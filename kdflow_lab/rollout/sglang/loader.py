"""Runs in SGLang's scheduler process: loads weights that lie in the student's segment.

Named in `ServerArgs.custom_weight_loader`. SGLang hands it one small tensor, a JSON text that says
where the segment is; no weight is pickled, and none passes through another process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdflow_lab.rollout.segment import WeightSegment

NAME = "kdflow"
PATH = f"{__name__}.load"
"""How SGLang is told of `load`."""

_segments: dict[int, WeightSegment] = {}  # the last one, by its inode


def message(path: str, version: int, buffer: int) -> list[tuple[str, Tensor]]:
    """Build what `load` takes.

    Args:
        path: Where the segment can be opened, such as `/proc/<pid>/fd/<number>`.
        version: Of the weights.
        buffer: Where they lie.
    """
    text = json.dumps({"path": path, "version": version, "buffer": buffer})
    return [(NAME, torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))]


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
