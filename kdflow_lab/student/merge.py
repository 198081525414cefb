"""A plain model from a LoRA checkpoint: adapters are read, and added to weights; needs no PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from kdflow_lab.errors import RunError
from kdflow_lab.losses._lora import Adapter
from kdflow_lab.student.checkpoint import quiet

_MODEL = "model."
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def read_adapters(checkpoint: Path) -> dict[str, Tensor]:
    """Read the factors that a checkpoint holds.

    Returns:
        Float32[R, H] and Float32[rows, R] by their names in the adapted model, such as
        `model.layers.0.mlp.up_proj.lora_A.default.weight`.

    Raises:
        RunError: There are none.
        Exception: What torch.distributed.checkpoint raises for files that cannot be read.
    """
    known = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    found = {
        name.removeprefix(_MODEL): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if name.startswith(_MODEL)
        and name.endswith((_A, _B))
        and isinstance(entry, TensorStorageMetadata)
    }
    if not found:
        raise RunError(
            f"The checkpoint {checkpoint} holds no LoRA adapters, but its run trained some "
            "(lora_r). Its config.yaml and its checkpoints are not of one run."
        )
    with quiet():
        dcp_load({"model": found}, checkpoint_id=checkpoint, no_dist=True)
    return found


@torch.no_grad()
def merge(model: Any, adapters: Mapping[str, Tensor], *, scale: float) -> None:
    """Add adapters to the weights of a plain model, in place: `W + scale * B A`.

    An adapted head that is tied to the embeddings gets a weight of its own first, and the config
    says so: the embeddings stay as they are.

    Args:
        model: A plain `transformers` model, of the kind that was adapted.
        adapters: From `read_adapters`.
        scale: `Lora.scale`.

    Raises:
        RunError: A layer that is adapted is not in the model, or has another shape.
    """
    layers = [name.removesuffix(_A) for name in adapters if name.endswith(_A)]
    modules = dict(model.named_modules())
    for name in layers:
        a, b = adapters[name + _A], adapters[name + _B]
        layer = modules.get(name)
        shape = None if layer is None else tuple(layer.weight.shape)
        if not isinstance(layer, nn.Linear) or shape != (b.shape[0], a.shape[1]):
            has = "is not in it" if shape is None else f"is {shape} in it"
            raise RunError(
                f"The run adapted a student whose layer {name} is {(b.shape[0], a.shape[1])}; the "
                f"model that the run's config names is another one: the layer {has}."
            )
        if layer.weight is model.get_input_embeddings().weight:
            layer.weight = nn.Parameter(layer.weight.clone())
            _untie(model, f"{name}.weight")
        layer.weight.copy_(Adapter(a * scale, b).added_to(layer.weight))


def _untie(model: Any, head: str) -> None:
    """Let a model and its config say that the head has a weight of its own."""
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", {})
    model.all_tied_weights_keys = {name: tied[name] for name in tied if name != head}
