"""Checkpoints of a tiny student on 1 or 2 ranks in real processes.

Run as a module's function in spawned processes, one after another, in a folder that they share.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from one_step import make_models, make_table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig
from kdflow_lab.data.batches import pack
from kdflow_lab.errors import RunError
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student import checkpoint
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.optimizer import make_optimizer

CONFIG = {"algorithm": "sft", "kd_ratio": 0.0, "lr": 0.01, "weight_decay": 0.1}
Known = dict[str, Any]


class Trained:
    """One rank of a student that can take steps."""

    def __init__(self, folder: Path, name: str = "student") -> None:
        config = DistillConfig.parse(**CONFIG)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.student = Student(str(folder / name), config=config, mesh=mesh)
        self.optimizer = make_optimizer(self.student.model, config)
        self.algorithm = make_algorithm(config)
        self.table = make_table()

    def step(self, number: int, *, update: bool = True) -> None:
        """Take a step on rows that depend on its number alone, not on the ranks."""
        rows = [(4 * number + one) % len(self.table) for one in range(4)]
        mine = rows[dist.get_rank() :: dist.get_world_size()]
        total = int(self.table.response_lengths[rows].sum())
        batch = pack(self.table, mine, step=number, index=0)
        self.optimizer.zero_grad(set_to_none=True)
        output = self.student.loss(batch, self.algorithm, None, None, total)
        self.student.backward(output.loss)
        if update:
            self.optimizer.step()

    def known(self) -> Known:
        """Everything that the next step depends on, whole; and the next random numbers."""
        names = {id(p): name for name, p in self.student.model.named_parameters()}
        known: Known = {}
        for name, values in self.student.model.named_parameters():
            known[f"weight {name}"] = _whole(values.detach())
        for parameter, state in self.optimizer.state.items():
            for name, values in state.items():
                known[f"{name} {names[id(parameter)]}"] = _whole(values)
        with torch.random.fork_rng():
            known["random"] = torch.rand(3)
        return known


def _whole(values: Tensor) -> Tensor:
    return (values.full_tensor() if isinstance(values, DTensor) else values).clone()


@contextlib.contextmanager
def in_folder() -> Iterator[Path]:
    """A folder with two models, a run that writes checkpoints into it, and room for results."""
    with tempfile.TemporaryDirectory(prefix="kdflow-checkpoint-") as name:
        folder = Path(name)
        make_models(folder, tied=True)  # the `teacher` is a student of another width here
        lab = {"student": str(folder / "student"), "trust_remote_code": False}
        RunDirectory(folder / "run").create({"lab": lab})
        yield folder


def step_of(world_size: int) -> int:
    """The step under which so many ranks save."""
    return 10 * world_size


def saves(folder: Path) -> dict[str, Known]:
    """Take three steps, save, take one more; `saved` and `next`."""
    directory = RunDirectory(folder / "run")
    torch.manual_seed(5 + dist.get_rank())
    trained = Trained(folder)
    for number in range(3):
        trained.step(number)
    torch.rand(7)
    saved = trained.known()
    kept = torch.arange(4.0)
    checkpoint.save(
        directory,
        step_of(dist.get_world_size()),
        trained.student.model,
        trained.optimizer,
        algorithm={"center": kept},
        why="a test",
    )
    unchanged = trained.known()
    assert all(torch.equal(unchanged[name], values) for name, values in saved.items())
    trained.step(3)
    return {"saved": saved, "next": trained.known()}


def loads(folder: Path) -> dict[int, dict[str, Any]]:
    """Load what one and two ranks saved, and take the next step."""
    found = {}
    for writers in (1, 2):
        torch.manual_seed(99)
        trained = Trained(folder)
        kept = torch.zeros(4)
        path = folder / "run" / "checkpoints" / str(step_of(writers))
        said = checkpoint.load(
            path, trained.student.model, trained.optimizer, algorithm={"center": kept}
        )
        loaded = trained.known()
        trained.step(3)
        found[writers] = {"said": said, "loaded": loaded, "next": trained.known(), "kept": kept}
    return found


def pauses_before_the_first_update(folder: Path) -> dict[str, Any]:
    """Save when no update was made, also where there were gradients; then load and go on."""
    directory, found = RunDirectory(folder / "run"), {}
    straight = Trained(folder)
    for number in (0, 1):
        straight.step(number)
    found["straight"] = straight.known()
    for step, skips in ((1, False), (2, True)):
        trained, again = Trained(folder), Trained(folder)
        if skips:
            trained.step(0, update=False)
        path = checkpoint.save(directory, step, trained.student.model, trained.optimizer)
        checkpoint.load(path, again.student.model, again.optimizer)
        for name, one in (("saved", trained), ("loaded", again)):
            for number in (0, 1):
                one.step(number)
            found[f"{name} {step}"] = one.known()
    return found


def fails(folder: Path) -> list[str]:
    """Save where it cannot be; load what cannot be read. What every rank was told."""
    trained, said = Trained(folder), []
    broken = RunDirectory(folder / "broken")
    if dist.get_rank() == 0:
        broken.create({})
        broken.checkpoints.write_text("a file where a folder should be")
    dist.barrier()
    tries: list[Callable[[], Any]] = [
        lambda: checkpoint.save(broken, 1, trained.student.model, trained.optimizer)
    ]
    other = Trained(folder, "teacher")
    path = folder / "run" / "checkpoints" / str(step_of(2))
    tries.append(lambda: checkpoint.load(path, other.student.model, other.optimizer))
    for attempt in tries:
        try:
            attempt()
            said.append("")
        except RunError as error:
            said.append(str(error))
        dist.barrier()
    return said


def fills_the_disk(folder: Path) -> list[str]:
    """Save until there is no room, as far as it goes; what every rank was told at last."""
    trained, directory = Trained(folder / "models"), RunDirectory(folder / "run")
    trained.step(0)
    for step in range(1, 1000):
        try:
            checkpoint.save(directory, step, trained.student.model, trained.optimizer)
        except RunError as error:
            return [str(step), str(error)]
    return []
