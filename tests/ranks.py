"""Ranks of a gloo group in processes of their own: what a function returns on each."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function of a module on every rank; what it returned on each, in order.

    Args:
        world_size: Number of processes.
        function: Gets `arguments`; it finds its rank with `torch.distributed`.
        *arguments: Are pickled.
    """
    with tempfile.TemporaryDirectory(prefix="kdflow-ranks-") as folder:
        start_processes(
            _rank,
            (world_size, folder, function, arguments),
            nprocs=world_size,
            start_method="spawn",
        )
        results = [Path(folder) / f"{rank}.pt" for rank in range(world_size)]
        return [torch.load(result, weights_only=False) for result in results]


def _rank(rank: int, world_size: int, folder: str, function: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    # Models and errors keep the group alive in cycles, and its C++ threads now and then abort the
    # process while the interpreter ends. Everything is written: leave at once.
    os._exit(0)
