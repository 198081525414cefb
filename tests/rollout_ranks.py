"""What ranks of a student do with a rollout engine; run by `ranks.on_ranks`."""

from __future__ import annotations

from typing import Any, NamedTuple

import rollout_engine
import tiny_models as models
import torch
import torch.distributed as dist
from tiny_lora import adapted
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.load import load_model
from kdflow_lab.rollout.client import RolloutEnd
from kdflow_lab.rollout.sampling import Sampling
from kdflow_lab.rollout.weights import entries_of, write
from kdflow_lab.student.fsdp import Student
from kdflow_lab.transport.segment import WeightSegment

STOPS = (3, 7, 11, 15, 19, 23, 27, 31)
NEW = 20


class Synced(NamedTuple):
    """What came of one hand-over.

    Attributes:
        version: That the samples say.
        apart: Their log-probabilities from the student's own, in nats, at most.
        right: Whether stop ids stand at ends, and only there.
        answers: Sampled ids.
    """

    version: int
    apart: float
    right: bool
    answers: list[list[int]]


def hand_over(folder: str, socket: str, versions: list[int]) -> list[Synced]:
    """Change the student and hand it over, time after time; what rank 0 saw of its answers."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    student = Student(folder, config=DistillConfig(data="zoo/tasks"), mesh=mesh)
    prompts = [ids.numpy() for ids in models.sequences((5, 1, 60, 33))]
    sampling = Sampling(temperature=1.2, n=2, max_new_tokens=NEW, stop_ids=STOPS)
    seen = []
    with RolloutEnd(socket, rank=dist.get_rank(), bucket_bytes=1 << 12) as end:
        for version in versions:
            for number, parameter in enumerate(student.model.parameters()):
                local = parameter.detach().to_local()
                torch.manual_seed(1000 * version + 10 * number + dist.get_rank())
                local.add_(0.03 * torch.randn_like(local))
            end.sync(student, version=version)
            own = _whole(student.model, folder)
            if dist.get_rank():
                continue
            end.submit(prompts, sampling, tag=version)
            got = end.receive(120)
            assert got.tag == version
            seen.append(
                Synced(
                    version=got.samples[0].version,
                    apart=rollout_engine.apart(own, prompts, got.samples),
                    right=all(_ends_right(one) for one in got.samples),
                    answers=[one.ids.tolist() for one in got.samples],
                )
            )
    return seen


def _whole(model: Any, folder: str) -> Any:
    """The sharded student as a plain model; collective."""
    plain = load_model(folder).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain.get_parameter(name).copy_(parameter.full_tensor())
    return plain


def _ends_right(sample: Any) -> bool:
    stops = [place for place, one in enumerate(sample.ids.tolist()) if one in STOPS]
    if sample.finished:
        return stops == [len(sample.ids) - 1]
    return not stops and len(sample.ids) == NEW


def uneven_shards(buckets: list[int]) -> bool:
    """Write parameters that do not divide by the ranks; whether they come whole each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1))
    whole = {name: one.detach().clone() for name, one in model.named_parameters()}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    is_first = dist.get_rank() == 0
    right = True
    for bucket_bytes in buckets:
        segment = WeightSegment.create(entries_of(model, torch.float32)) if is_first else None
        write(model, segment, dtype=torch.float32, version=1, bucket_bytes=bucket_bytes)
        views = {} if segment is None else segment.views(0)
        right &= all(torch.equal(whole[name], one) for name, one in views.items())
        right &= bool(views) == is_first
    return right


def merged_shards(folder: str) -> float:
    """Write a sharded student with adapters; how far rank 0's weights are from the whole sums."""
    torch.manual_seed(0)  # the same adapters on every rank
    model = adapted(load_model(folder))
    sums = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "base_layer"):
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            sums[f"{name}.weight"] = (layer.base_layer.weight + 2.0 * product).detach().clone()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    is_first = dist.get_rank() == 0
    segment = WeightSegment.create(entries_of(model, torch.float32)) if is_first else None
    write(model, segment, dtype=torch.float32, version=1, bucket_bytes=1 << 12)
    if segment is None:
        return 0.0
    views = segment.views(0)
    assert len(sums) > 3
    return max(float((views[name] - one).abs().max()) for name, one in sums.items())


def told_of_death(folder: str, socket: str, killed: str) -> str:
    """Wait until the engine is killed, then sync; what this rank is told."""
    import time
    from pathlib import Path

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    student = Student(folder, config=DistillConfig(data="zoo/tasks"), mesh=mesh)
    with RolloutEnd(socket, rank=dist.get_rank()) as end:
        end.sync(student, version=1)
        dist.barrier()
        if dist.get_rank() == 0:
            Path(killed).with_suffix(".go").touch()
        while not Path(killed).exists():
            time.sleep(0.02)
        try:
            end.sync(student, version=2)
        except KDFlowLabError as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"
