"""A step of every cross-tokenizer algorithm under FSDP2, as `ranks.on_ranks` calls it."""

from __future__ import annotations

from typing import Any

import cross_toys as toys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from kdflow_lab.losses import Head


class Toy(nn.Module):
    """Hidden states through one layer, and a head."""

    def __init__(self) -> None:
        """Draw the weights, the same on every rank."""
        super().__init__()
        self.layer = nn.Linear(toys.HS, toys.HS, bias=False, dtype=torch.float64)
        self.layer.weight.data.copy_(toys.made(toys.HS, toys.HS, seed=5))
        width = len(toys.PAIR.student)
        self.head = nn.Parameter(toys.made(width, toys.HS, seed=6))

    def step(self, algorithm: Any, of: toys.Case, num_valid_tokens: int) -> Any:
        """The loss, inside a forward method: the parameters are whole."""
        hidden = self.layer(of.hidden.detach())
        return toys.loss(
            algorithm, of._replace(hidden=hidden, head=Head(self.head)), num_valid_tokens
        )


def take_steps(kinds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Loss, measures and gradients of every algorithm; the first rank has all the answers."""
    return {kind: _take_step(options) for kind, options in kinds.items()}


def take_alone(options: dict[str, Any]) -> dict[str, Any]:
    """The same of one algorithm without ranks and shards."""
    model, algorithm, of = Toy(), toys.algorithm(**options), toys.case()
    if (projectors := getattr(algorithm, "projectors", None)) is not None:
        model.add_module("beside", projectors)
    output = model.step(algorithm, of, len(of.labels))
    output.loss.backward()
    found = {name: getattr(output, name).detach() for name in ("loss", "kd", "ce")} | output.extra
    gradients = {f"grad {name}": one.grad for name, one in model.named_parameters()}
    return found | {name: one for name, one in gradients.items() if one is not None}


def _take_step(options: dict[str, Any]) -> dict[str, Any]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Toy()
    algorithm = toys.algorithm(**options)
    projectors = getattr(algorithm, "projectors", None)
    if projectors is not None:
        model.add_module("beside", projectors)
    mesh = init_device_mesh("cpu", (ranks,))
    fully_shard(model.layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "step")
    whole = toys.case()
    tokens = len(whole.labels)
    # the last rank has nothing, but takes part all the same
    first, last = (0, 5) if rank == 0 else (5, 5)
    output = model.step(algorithm, toys.some(whole, first, last), tokens)
    (output.loss * ranks).backward()
    found: dict[str, Any] = {}
    for name in ("loss", "kd", "ce"):
        found[name] = _sum(getattr(output, name))
    found.update({name: _sum(one) for name, one in output.extra.items()})
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        gradient = parameter.grad
        if gradient is not None:
            assert isinstance(gradient, DTensor)
            found[f"grad {name}"] = gradient.full_tensor()
    return found


def _sum(value: torch.Tensor) -> torch.Tensor:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total
