"""LoRA adapters as PEFT names them, which need not be installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Lora(nn.Module):
    """A linear layer as PEFT wraps it: the same names, and the same sum."""

    def __init__(self, base: nn.Linear, *, rank: int = 3) -> None:
        super().__init__()
        outputs, inputs = base.weight.shape
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})
        self.scaling = {"default": 2.0}
        self.active_adapters = ["default"]

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        low = self.lora_A["default"](inputs)
        return self.base_layer(inputs) + self.lora_B["default"](low) * self.scaling["default"]


def adapted(model: Any) -> Any:
    """Put adapters on some layers, the head among them."""
    for layer in model.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
        layer.mlp.down_proj = Lora(layer.mlp.down_proj)
    model.lm_head = Lora(model.lm_head)
    return model
