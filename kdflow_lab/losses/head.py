"""A language-model head as data: what turns hidden states into logits, and how wide it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdflow_lab.errors import ModelError, ShapeError
from kdflow_lab.losses._lora import Adapter, adapter_of

HEADS = ("lm_head.weight", "embed_out.weight")
"""Where a head of its own is."""
EMBEDDINGS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
"""Where the rows of a head are that is tied to the embeddings."""


@dataclass(frozen=True, slots=True)
class Head:
    """`logits = soft_cap(scale * (hidden @ weight.T + bias))`, cut to `vocab_size` columns.

    Attributes:
        weight: Float[rows, H]; rows may be padded beyond the vocabulary.
        bias: Float[rows] or None.
        logit_scale: Multiplies the logits (Cohere's `logit_scale`; Granite divides by
            `logits_scaling`).
        soft_cap: `c * tanh(logits / c)` (Gemma's `final_logit_softcapping`) or None.
        vocab_size: Ids that exist; columns beyond it are never computed. None: all rows.
        adapter: A LoRA adapter whose product is added to the weight, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    soft_cap: float | None = None
    vocab_size: int | None = None
    adapter: Adapter | None = None

    @classmethod
    def of(cls, model: Any, vocab_size: int | None = None) -> Head:
        """Take the head of a `transformers` model, with what its config says about logits.

        A LoRA adapter that PEFT put on the head is part of it.

        Raises:
            ModelError: The model has no head, or one that is adapted in another way.
        """
        module = model.get_output_embeddings()
        if module is None:
            raise ModelError(
                f"{type(model).__name__} has no language-model head. Load the model with "
                "AutoModelForCausalLM."
            )
        adapter = adapter_of(module)
        layer = getattr(module, "base_layer", module)
        return cls(
            layer.weight,
            getattr(layer, "bias", None),
            vocab_size=vocab_size,
            adapter=adapter,
            **output_transform(model.config),
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: torch.dtype) -> Head:
        """Read only the head's tensors from a folder of safetensors.

        Raises:
            ModelError: The folder holds no config, or no tensor that is a head.
        """
        folder = Path(path)
        head = cls.found(lambda names: _read_tensor(folder, names), _config(folder), dtype=dtype)
        if head is None:
            raise ModelError(_no_head(folder))
        return head

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor], path: str | Path, *, dtype: torch.dtype) -> Head:
        """Take the head from a model's tensors in memory.

        Args:
            tensors: By their names in the plain model; tied ones may come once.
            path: Folder of a model of that architecture, whose config is read.
            dtype: Of the head; a tensor that has it is not copied.

        Raises:
            ModelError: The folder holds no config, or no tensor is a head.
        """

        def get(names: tuple[str, ...]) -> Tensor | None:
            return next((tensors[name] for name in names if name in tensors), None)

        head = cls.found(get, _config(Path(path)), dtype=dtype)
        if head is None:
            names = " or ".join((*HEADS, *EMBEDDINGS))
            raise ModelError(
                f"No head among {len(tensors)} tensors of a model like {path}: expected {names}."
            )
        return head

    @classmethod
    def found(
        cls,
        get: Callable[[tuple[str, ...]], Tensor | None],
        config: dict[str, Any],
        *,
        dtype: torch.dtype,
    ) -> Head | None:
        """Take the head from wherever `get` finds the first tensor of some names; None for none."""
        weight = get(HEADS)
        if weight is None or config.get("tie_word_embeddings"):
            tied = get(EMBEDDINGS)
            weight = tied if tied is not None else weight
        if weight is None:
            return None
        bias = get(("lm_head.bias",))
        return cls(
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            **output_transform(config),
        )

    @property
    def width(self) -> int:
        """Columns of the logits."""
        rows = self.weight.shape[0]
        return rows if self.vocab_size is None else min(rows, self.vocab_size)

    def cut(self, vocab_size: int) -> Head:
        """Return the same head with only the first `vocab_size` columns."""
        return dataclasses.replace(self, vocab_size=min(vocab_size, self.weight.shape[0]))

    def to(self, device: torch.device | str) -> Head:
        """Return the same head on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        adapter = None if self.adapter is None else self.adapter.to(device)
        return dataclasses.replace(self, weight=self.weight.to(device), bias=bias, adapter=adapter)

    def linear(self, hidden_TH: Tensor) -> Tensor:
        """The matrix product alone: `[T, H] -> [T, width]`, in the hidden states' dtype.

        Raises:
            ShapeError: The hidden size is not the head's.
        """
        self.check(hidden_TH)
        weight = self.weight[: self.width].to(hidden_TH.dtype)
        bias = None if self.bias is None else self.bias[: self.width].to(hidden_TH.dtype)
        logits = F.linear(hidden_TH, weight, bias)
        if self.adapter is not None:
            b = self.adapter.b[: self.width].to(hidden_TH.dtype)
            logits = logits + F.linear(self.adapter.inner(hidden_TH), b)
        return logits

    def check(self, hidden_TH: Tensor) -> None:
        """Refuse hidden states of another width.

        Raises:
            ShapeError: The hidden size is not the head's.
        """
        if hidden_TH.shape[-1] != self.weight.shape[1]:
            raise ShapeError(
                f"Hidden states are {hidden_TH.shape[-1]} wide, the head expects "
                f"{self.weight.shape[1]}. Take both from the same model."
            )

    def transform(self, logits: Tensor) -> Tensor:
        """Scale and soft-cap, in float32 (float64 stays): what the model does after the product."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    def transform_(self, logits: Tensor, slope: Tensor | None = None) -> None:
        """The same in place, on float32 or float64.

        Args:
            logits: Float[T, width].
            slope: The same shape; filled with the derivative with respect to what was given, which
                for a head without a soft-cap is `logit_scale` everywhere and needs no tensor.
        """
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        if self.soft_cap is None:
            return
        logits.div_(self.soft_cap).tanh_()
        if slope is not None:
            torch.mul(logits, logits, out=slope).sub_(1.0).mul_(-self.logit_scale)
        logits.mul_(self.soft_cap)

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """`[T, H] -> [T, width]`, float32 or float64."""
        return self.transform(self.linear(hidden_TH))


def output_transform(config: Any) -> dict[str, Any]:
    """Read scale and soft-cap from a `transformers` config or its dict."""
    if not isinstance(config, dict):
        config = config.to_dict()
    config = config.get("text_config") or config
    scale = float(config.get("logit_scale") or 1.0)
    if config.get("logits_scaling"):
        scale /= float(config["logits_scaling"])
    return {"logit_scale": scale, "soft_cap": config.get("final_logit_softcapping")}


def head_rows(path: str | Path) -> int:
    """Return the rows of the head of a model folder, without reading the weights.

    Raises:
        ModelError: There is no head in it.
    """
    folder = Path(path)
    names = (*HEADS, *EMBEDDINGS)
    shape = _read(folder, names, lambda tensors, name: tensors.get_slice(name).get_shape())
    if shape is None:
        raise ModelError(_no_head(folder))
    return int(shape[0])


def _config(folder: Path) -> dict[str, Any]:
    """Read a model's config."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json. Pass a folder in Hugging "
            "Face format."
        ) from None


def _no_head(folder: Path) -> str:
    return (
        f"No head in {folder}: neither lm_head.weight nor model.embed_tokens.weight is in its "
        "safetensors files."
    )


def _read_tensor(folder: Path, names: tuple[str, ...]) -> Tensor | None:
    """Read the first of `names` that the folder's safetensors hold."""
    return _read(folder, names, lambda tensors, name: tensors.get_tensor(name))


def _read(folder: Path, names: tuple[str, ...], get: Callable[[Any, str], Any]) -> Any:
    """Get something of the first of `names` that the folder's safetensors hold; None for none."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] if index.exists() else None
    for name in names:
        if where is not None:
            files = [folder / where[name]] if name in where else []
        else:
            files = sorted(folder.glob("*.safetensors"))
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 - not a dict
                    return get(tensors, name)
    return None
