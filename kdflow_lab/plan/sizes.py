"""How large a model is, from its config and the headers of its safetensors: no weight is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab.errors import ModelError
from kdflow_lab.losses.head import HEADS
from kdflow_lab.student.lora import ALL_LINEAR, is_called

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts?\.|experts\.(?:gate_up_proj|down_proj)")
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts of a causal language model. Parameters are numbers, not bytes.

    Attributes:
        parameters: All, tied ones once.
        layer_parameters: Of all decoder layers together.
        head: Of the head (vocabulary rows x hidden size), tied or not.
        tied: The head is the embedding.
        active: That a token is multiplied with, the head left out (of a mixture of experts, the
            experts that are chosen).
        vocabulary: Rows of the head, padding included.
        hidden: Width of a hidden row.
        layers: Decoder layers.
        intermediate: Width of the MLP.
        query: Width of all query heads together.
        key: Width of all key heads together.
        gated: The MLP has a gate beside its way up.
        normed_heads: Queries and keys are normed (Qwen3).
        dtype: Of the checkpoint, such as `bfloat16`.
        file_bytes: Of the safetensors files.
        linears: Name, rows and columns of every matrix in the decoder layers, and of the head.
    """

    parameters: int
    layer_parameters: int
    head: int
    tied: bool
    active: int
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    query: int
    key: int
    gated: bool = True
    normed_heads: bool = False
    dtype: str = "float32"
    file_bytes: int = 0
    linears: tuple[tuple[str, int, int], ...] = ()

    @property
    def root(self) -> int:
        """Parameters outside the decoder layers: embeddings, head, final norm."""
        return self.parameters - self.layer_parameters

    @property
    def decoder(self) -> int:
        """Parameters without a head of its own: what a teacher keeps."""
        return self.parameters if self.tied else self.parameters - self.head


def model_size(path: str | Path) -> ModelSize:
    """Read the sizes of a model folder.

    Raises:
        ModelError: It has no config, no safetensors, or a damaged header.
    """
    folder = Path(path)
    config = read_config(folder)
    shapes, dtypes = tensor_shapes(folder)
    text = config.get("text_config") or config
    hidden = int(_first(text, "hidden_size", "n_embd", "d_model") or 0)
    heads = int(_first(text, "num_attention_heads", "n_head") or 1)
    head_dim = int(text.get("head_dim") or hidden // heads)
    key_heads = int(text.get("num_key_value_heads") or heads)
    named_layers = {match[1] for name in shapes if (match := _LAYER.search(name))}
    own_head = _find(shapes, HEADS)
    embedding = _find(shapes, EMBEDDINGS)
    head = own_head or embedding
    if head is None or not named_layers or not hidden:
        raise ModelError(
            f"{folder} is no causal language model that can be counted: among {len(shapes)} "
            f"tensors there is no head ({', '.join(HEADS)}), or no decoder layer. Pass the folder "
            "of a whole model, as save_pretrained writes it."
        )
    tied = own_head is None or bool(
        embedding and config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    )
    counted = {name: math.prod(shape) for name, shape in shapes.items()}
    if tied and own_head is not None and embedding is not None:
        del counted[own_head]
    parameters = sum(counted.values())
    in_layers = sum(count for name, count in counted.items() if _LAYER.search(name))
    experts = sum(count for name, count in counted.items() if _EXPERT.search(name))
    chosen = _chosen_share(text)
    vocabulary, width = shapes[head][0], math.prod(shapes[head][1:])
    return ModelSize(
        parameters=parameters,
        layer_parameters=in_layers,
        head=vocabulary * width,
        tied=tied,
        active=in_layers - round(experts * (1 - chosen)),
        vocabulary=vocabulary,
        hidden=hidden,
        layers=len(named_layers),
        intermediate=_intermediate(text, hidden),
        query=heads * head_dim,
        key=key_heads * head_dim,
        gated=any("gate_proj" in name or "gate_up_proj" in name for name in shapes),
        normed_heads=any("q_norm" in name for name in shapes),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or _common(dtypes)),
        file_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        linears=tuple(
            (name.removesuffix(".weight"), *shape)
            for name, shape in shapes.items()
            if len(shape) == 2 and (_LAYER.search(name) or name == own_head)
        ),
    )


def adapter_parameters(size: ModelSize, rank: int, targets: str | Sequence[str]) -> int:
    """Count what LoRA trains: `rank * (rows + columns)` of every layer that gets an adapter.

    Hu et al. 2021 (arXiv:2106.09685), section 4.1.

    Args:
        size: The student's.
        rank: Of the adapters.
        targets: Ends of layers' names, or `all-linear` for those of the decoder layers.
    """
    asked = (targets,) if isinstance(targets, str) else tuple(targets)
    return sum(
        rank * (rows + columns)
        for name, rows, columns in size.linears
        if any(is_called(name, one) for one in asked)
        or (ALL_LINEAR in asked and _LAYER.search(f"{name}."))
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ModelError: There is none, or it is no JSON.
    """
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no readable config.json: {error}. Pass a folder in Hugging Face format."
        ) from None


def tensor_shapes(folder: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Read names and shapes of all tensors from the files' headers, and their dtypes.

    A header is its length (8 bytes, little endian) and a JSON object (the safetensors format).

    Raises:
        ModelError: There is no safetensors file, or a header is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= _LARGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(stream.read(length))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The header of {file} cannot be read: {error}. The file is damaged, or a pointer "
                "to one that was not fetched; copy it again."
            ) from None
        for name, entry in header.items():
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
                dtypes.append(entry["dtype"])
    if not shapes:
        raise ModelError(
            f"{folder} holds no safetensors file. Save the model with save_pretrained; pickled "
            "weights are not read."
        )
    return shapes, dtypes


def _find(shapes: dict[str, tuple[int, ...]], endings: tuple[str, ...]) -> str | None:
    return next((name for name in shapes if name.endswith(endings)), None)


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _intermediate(config: dict[str, Any], hidden: int) -> int:
    """Width of the MLP that a token runs through; of experts, of the chosen ones together."""
    chosen = config.get("num_experts_per_tok")
    if chosen and config.get("moe_intermediate_size"):
        return int(config["moe_intermediate_size"]) * int(chosen)
    width = _first(config, "intermediate_size", "n_inner", "ffn_dim")
    return int(width or 4 * hidden) * int(chosen or 1)


def _chosen_share(config: dict[str, Any]) -> float:
    """The share of the experts that one token runs through; 1 where there are none."""
    count = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
    chosen = config.get("num_experts_per_tok")
    return min(1.0, chosen / count) if count and chosen else 1.0


def _common(dtypes: list[str]) -> str:
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    return names.get(max(set(dtypes), key=dtypes.count), "float32")
