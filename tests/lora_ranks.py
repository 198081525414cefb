"""LoRA students on 1 or 2 ranks in real processes: they learn, are saved, and go on.

Run as a module's function in spawned processes, in a folder that they share.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from one_step import make_models, make_table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from kdflow_lab import zoo
from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.errors import RunError
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student import checkpoint
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.optimizer import make_optimizer

BOTH = ["all-linear", "lm_head"]
KINDS: dict[str, tuple[bool, Any]] = {
    "tied": (True, "all-linear"),
    "tied, adapted": (True, BOTH),
    "untied": (False, "all-linear"),
    "untied, adapted": (False, BOTH),
}
"""Of heads: whether it is tied to the embeddings, and which layers get adapters."""
RANK, STEPS, LR = 3, 3, 0.01


def options(kind: str, **more: Any) -> dict[str, Any]:
    """What is asked of a run."""
    return {
        "algorithm": "sft",
        "kd_ratio": 0.0,
        "lr": LR,
        "lora_r": RANK,
        "lora_target_modules": KINDS[kind][1],
        **more,
    }


@contextlib.contextmanager
def in_folder() -> Iterator[Path]:
    """A folder with a run of each kind, and the models that they start from."""
    with tempfile.TemporaryDirectory(prefix="kdflow-lora-") as name:
        folder = Path(name)
        tokenizer = load_tokenizer(str(zoo.path("zoo/student")))
        for tied in (True, False):
            _, student = make_models(folder / str(tied), tied=tied)
            tokenizer.save_pretrained(student)  # it is exported with the model, and not used
        for kind in KINDS:
            asked = DistillConfig.parse(**options(kind)).model_dump(mode="json")
            lab = {"student": student_path(folder, kind), "trust_remote_code": False}
            RunDirectory(folder / kind).create({**asked, "lab": lab})
        yield folder


def student_path(folder: Path, kind: str) -> str:
    """The model that a run starts from."""
    return str(folder / str(KINDS[kind][0]) / "student")


class Trained:
    """One rank of a LoRA student that can take steps."""

    def __init__(self, folder: Path, kind: str, **more: Any) -> None:
        config = DistillConfig.parse(**options(kind, **more))
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        torch.manual_seed(dist.get_rank())  # adapters are the same on all ranks nevertheless
        self.student = Student(student_path(folder, kind), config=config, mesh=mesh)
        self.optimizer = make_optimizer(self.student.model, config)
        self.algorithm = make_algorithm(config)
        self.table = make_table()

    def step(self, number: int) -> tuple[float, dict[str, Tensor]]:
        """Take a step on rows that depend on its number alone; its loss, and whole gradients."""
        rows = rows_of(number)
        mine = rows[dist.get_rank() :: dist.get_world_size()]
        total = int(self.table.response_lengths[rows].sum())
        self.optimizer.zero_grad(set_to_none=True)
        output = self.student.loss(self._pack(mine), self.algorithm, None, None, total)
        self.student.backward(output.loss)
        loss = output.loss.detach().clone()
        dist.all_reduce(loss)
        gradients = {
            name: _whole(p.grad)
            for name, p in self.student.model.named_parameters()
            if p.grad is not None
        }
        self.optimizer.step()
        return loss.item(), gradients

    def logits(self) -> Tensor:
        """Float[T, V] of the trained tokens of row 0, as the student computes them."""

        def at(hidden: Tensor, head: Head) -> Tensor:
            return head.logits(hidden).clone()

        return self.student.look(self._pack([0]), at)

    def weights(self) -> dict[str, Tensor]:
        """Everything, whole."""
        return {name: _whole(p.detach()) for name, p in self.student.model.named_parameters()}

    def _pack(self, rows: list[int]) -> MicroBatch:
        return pack(self.table, rows, step=0, index=0)


def rows_of(number: int) -> list[int]:
    """The rows of a step."""
    return [4 * number % 12 + one for one in range(4)]


def _whole(values: Any) -> Tensor:
    return (values.full_tensor() if isinstance(values, DTensor) else values).clone()


def learns(folder: Path) -> dict[str, Any]:
    """Take steps with each kind, save, take one more; load what was saved and take it, too."""
    found: dict[str, Any] = {kind: _learns(folder, kind) for kind in KINDS}
    return {**found, "other ways": _other_ways(folder), "dropout": _with_dropout(folder)}


def _other_ways(folder: Path) -> dict[str, Any]:
    """The gradients of a first step, computed in other ways."""
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"activation_checkpointing": True},
        {"packing": False},
        {"chunk_tokens": 3},
    )
    return {str(way): Trained(folder, "tied, adapted", **way).step(0)[1] for way in ways}


def _with_dropout(folder: Path) -> list[float]:
    """The losses of a step that is taken after a checkpoint: straight, loaded, without dropout."""
    trained = Trained(folder, "tied, adapted", lora_dropout=0.5)
    trained.step(0)
    directory = RunDirectory(folder / "tied, adapted")
    path = checkpoint.save(directory, 9, trained.student.model, trained.optimizer)
    losses = [trained.step(1)[0]]
    for more in ({"lora_dropout": 0.5}, {}):
        again = Trained(folder, "tied, adapted", **more)
        checkpoint.load(path, again.student.model, again.optimizer)
        losses.append(again.step(1)[0])
    return losses


def _learns(folder: Path, kind: str) -> dict[str, Any]:
    trained = Trained(folder, kind)
    before = trained.weights()
    losses, first = [], {}
    for number in range(STEPS):
        loss, gradients = trained.step(number)
        losses.append(loss)
        first = first or gradients
    step = dist.get_world_size()
    path = checkpoint.save(
        RunDirectory(folder / kind), step, trained.student.model, trained.optimizer
    )
    found = {
        "before": before,
        "losses": losses,
        "gradients": first,
        "after": trained.weights(),
        "logits": trained.logits(),
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "shards": trained.student.shards(),
        "about_head": trained.student.about_head,
        "next": trained.step(STEPS)[0],
        "next weights": trained.weights(),
    }
    found["refused"] = _refused(folder, kind, path)
    again = Trained(folder, kind, seed=7)  # other adapters, which are overwritten
    checkpoint.load(path, again.student.model, again.optimizer)
    found["loaded"] = again.weights()
    found["loaded next"] = again.step(STEPS)[0]
    found["loaded next weights"] = again.weights()
    return found


def _refused(folder: Path, kind: str, path: Path) -> str:
    """Load a checkpoint into a student that stands on other weights; what is said."""
    other = Trained(folder, kind)
    other.student.model.base_mark = "0" * 32
    try:
        checkpoint.load(path, other.student.model, other.optimizer)
    except RunError as error:
        return str(error)
    return ""
