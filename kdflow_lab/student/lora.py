"""LoRA students: PEFT puts adapters beside linear layers, and nothing else is trained.

The model stays the object that it was, with PEFT's layers inside, so that sharding, packed rows and
the loss find what they find in any student. A layer computes `W x + (alpha / r) B A x`: W is
frozen, A begins at random and B at zero, so that the student begins as its model (Hu et al. 2021,
LoRA, arXiv:2106.09685, equation 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdflow_lab.errors import ConfigError, ModelError, nearest
from kdflow_lab.extras import need_peft

ALL_LINEAR = "all-linear"
LISTED = 12
"""Names of layers that an error lists."""


@dataclass(frozen=True, slots=True)
class Lora:
    """What a run's `lora_*` options ask for.

    Attributes:
        rank: Columns of B and rows of A.
        alpha: The product is multiplied by `alpha / rank`.
        dropout: Share of an adapter's inputs that are left out while training.
        target_modules: Ends of layers' names, and `all-linear` for those of the decoder.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Lora | None:
        """Read the options of a run; None if it trains all weights.

        Args:
            options: Fields of `DistillConfig`, checked; those of an older run may lack these.
        """
        rank = options.get("lora_r")
        if rank is None:
            return None
        asked = options["lora_target_modules"]
        names = (asked,) if isinstance(asked, str) else tuple(asked)
        return cls(rank, options["lora_alpha"], options["lora_dropout"], names)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank


def adapt(model: Any, lora: Lora, *, seed: int) -> Any:
    """Put adapters into a model and freeze the rest.

    Args:
        model: A plain `transformers` model; it is changed in place.
        lora: Where, and how large.
        seed: Of the factors A, which are the same on every rank; no other random number changes.

    Returns:
        PEFT's wrapper around the same model, which knows how to write its adapters.

    Raises:
        ConfigError: PEFT is missing, or a name in `target_modules` is none of a linear layer's.
    """
    need_peft()
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        # PEFT divides it, whole or not; others who read the folder may expect a whole number
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # type: ignore
        lora_dropout=lora.dropout,
        target_modules=target_names(model, lora.target_modules),
        task_type=TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        # PEFT warns of a tied head; `about_head` says what becomes of it.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, config)


def target_names(model: Any, asked: Iterable[str]) -> list[str]:
    """Resolve what was asked for into the full names of linear layers.

    Args:
        model: A plain `transformers` model.
        asked: `all-linear`, or names of layers or their ends, such as `q_proj`, `mlp.up_proj`.

    Raises:
        ConfigError: No linear layer has such a name; the nearest is offered.
        ModelError: The model has no linear layer that could be adapted.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inner = {id(module) for module in model.get_decoder().modules()} - {
        id(model.get_output_embeddings())
    }
    modules = dict(model.named_modules())
    in_decoder = [name for name in linear if id(modules[name]) in inner]
    found: set[str] = set()
    for name in asked:
        if name == ALL_LINEAR:
            if not in_decoder:
                raise ModelError(
                    f"{type(model).__name__} has no linear layers that LoRA could adapt. Train all "
                    "of its weights: leave lora_r out."
                )
            found.update(in_decoder)
            continue
        fitting = {one for one in linear if is_called(one, name)}
        if not fitting:
            ends = sorted({one.rpartition(".")[2] for one in linear})
            listed = ", ".join([ALL_LINEAR, *ends[:LISTED], *(["…"] if len(ends) > LISTED else [])])
            raise ConfigError(
                f"lora_target_modules names {name!r}, but no linear layer of the student is called "
                f"that.{nearest(name, [ALL_LINEAR, *ends, *linear])} Known: {listed}."
            )
        found |= fitting
    return [name for name in linear if name in found]


def is_called(layer: str, name: str) -> bool:
    """Tell whether a layer's full name is `name`, or ends with it behind a dot."""
    return layer == name or layer.endswith(f".{name}")


def has_own_head(model: Any) -> bool:
    """Tell whether an adapter makes the head differ from the embeddings that it is tied to."""
    head = model.get_output_embeddings()
    base = getattr(head, "base_layer", None)
    return base is not None and base.weight is model.get_input_embeddings().weight


def about_head(model: Any) -> str:
    """Say in words what a user should know of an adapted head; empty if nothing."""
    if not has_own_head(model):
        return ""
    return (
        "The student's head is tied to its embeddings: the adapter changes the head alone, the "
        "embeddings stay. run.export() writes a head of its own, with tie_word_embeddings=False."
    )
