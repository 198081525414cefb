"""A student that is looked at while it trains, on 1 or 2 ranks in real processes.

Run as a module's function in spawned processes. The teacher serves from rank 0, in threads, as its
engine does it: the training's ring at one socket, held-out rows aside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from one_step import make_table
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from kdflow_lab.algorithms import make_algorithm
from kdflow_lab.config import DistillConfig
from kdflow_lab.data import sources
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.plan import DataPlan
from kdflow_lab.data.tokens import TokenTable, tokenize
from kdflow_lab.errors import TransportError
from kdflow_lab.evaluate import batches as scored_batches
from kdflow_lab.evaluate import subject
from kdflow_lab.evaluate.held_out import HeldOut
from kdflow_lab.evaluate.probe_file import read
from kdflow_lab.evaluate.probes import Probes
from kdflow_lab.hub import resolve_model
from kdflow_lab.jobs import StudentPlace, SubjectJob, TeacherInfo
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.step import distill_step
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.student.fsdp import Student
from kdflow_lab.student.optimizer import make_optimizer
from kdflow_lab.teacher.serving import Serving
from kdflow_lab.teacher.transformers import TransformersTeacher
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd

STEPS = 3
PROBE_ROWS = 5
BATCH_TOKENS = 64
"""Small, so that ranks have several micro-batches, and not equally many that are full."""


@dataclasses.dataclass(frozen=True)
class Looked:
    """What rank 0 has in the end; lists hold one entry a boundary, 0 to `STEPS`.

    Attributes:
        losses: Summed over the ranks, of each step.
        scores: What `HeldOut.score` gave on each rank: one list a boundary.
        probes: What `Probes.write` wrote.
        weights: Whole parameters.
        in_flight: Micro-batches that were asked for over the ring and not read yet.
        changed: What was not as before after looking.
        teacher_calls: Micro-batches that the teacher ran, training included.
        expected_calls: Not empty micro-batches of the training, and of held-out rows once.
        others: Scores of a single row, and of all without a teacher; and what each rank is told if
            the teacher refuses the last of them.
    """

    losses: list[float]
    scores: list[list[dict[str, Any]]]
    probes: list[dict[str, np.ndarray]]
    weights: list[dict[str, Tensor]]
    in_flight: list[int]
    changed: list[str]
    teacher_calls: int
    expected_calls: int
    others: dict[str, Any]


def give_dropout(path: str, share: float) -> None:
    """Let a model drop attention weights while it trains."""
    file = Path(path) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "attention_dropout": share}))


def in_processes(world_size: int, function: Any, *arguments: Any) -> Any:
    """Call `function(rank, world_size, folder, *arguments)` on every rank; what rank 0 returns."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        return on_ranks(world_size, _of_rank, function, folder, arguments)[0]


def _of_rank(function: Any, folder: str, arguments: Any) -> Any:
    rank = dist.get_rank()
    result = function(rank, dist.get_world_size(), folder, *arguments)
    return result if rank == 0 else None


class _Counting(TransformersTeacher):
    calls = 0

    def hidden_states(
        self, input_ids: Tensor, cu_seqlens: Tensor, rows: Tensor, out: Tensor
    ) -> None:
        self.calls += 1
        super().hidden_states(input_ids, cu_seqlens, rows, out)


@contextlib.contextmanager
def _serving(teacher: Any, place: StudentPlace) -> Iterator[None]:
    """Serve from rank 0 until all ranks are done."""
    assert place.socket is not None
    server = None
    if place.rank == 0:
        server = Serving(teacher, place.socket, place.aside, world_size=place.world_size, threads=1)
    try:
        yield
        dist.barrier()
    finally:
        if server is not None:
            server.close()


def _place(rank: int, world_size: int, folder: str, name: str) -> StudentPlace:
    return StudentPlace(
        rank=rank,
        world_size=world_size,
        device="cpu",
        threads=1,
        socket=f"{folder}/{name}.sock",
        rendezvous="",
        aside=f"{folder}/{name}-aside.sock",
    )


def _info(path: str, teacher: TransformersTeacher) -> TeacherInfo:
    return TeacherInfo(path, "transformers", "", teacher.hidden_size, "float32", 0, {})


def train(
    rank: int,
    world_size: int,
    folder: str,
    models: tuple[str, str],
    look: bool,
    packing: bool = True,
) -> Looked:
    """Take some steps, and look at every boundary (or not)."""
    torch.manual_seed(rank)
    place = _place(rank, world_size, folder, f"train-{look}")
    teacher = _Counting(models[0])
    with (
        mock.patch.object(scored_batches, "BATCH_TOKENS", BATCH_TOKENS),
        _serving(teacher, place),
    ):
        return _train(place, folder, models, teacher, look, packing)


def _train(
    place: StudentPlace,
    folder: str,
    models: tuple[str, str],
    teacher: _Counting,
    look: bool,
    packing: bool,
) -> Looked:
    config = DistillConfig.parse(
        algorithm="vanilla_kd", kd_ratio=0.5, packing=packing, precision="float32", lr=1e-2
    )
    table = make_table()
    plan = DataPlan(
        table.lengths,
        table.response_lengths,
        batch_size=6,
        world_size=place.world_size,
        micro_batch_tokens=96,
        micro_batch_rows=None,
        seed=1,
    )
    mesh = init_device_mesh("cpu", (place.world_size,))
    student = Student(models[1], config=config, mesh=mesh)
    optimizer = make_optimizer(student.model, config)
    algorithm = make_algorithm(config)
    head = Head.from_pretrained(models[0], dtype=torch.float32)
    info = _info(models[0], teacher)
    given: dict[str, Any] = {"teacher": info, "teacher_head": head, "place": place}
    held_out = HeldOut(student, table, **given)
    probes = Probes(student, table.first(PROBE_ROWS), **given)
    directory = RunDirectory(Path(folder) / f"run-{look}")
    batches = [
        pack(table, by_rank[place.rank], step=step, index=index)
        for step in range(STEPS)
        for index, by_rank in enumerate(plan.step(step).micro_batches)
    ]
    layout = SlotLayout(
        max_tokens=plan.max_tokens(),
        max_sequences=plan.max_sequences(),
        max_rows=plan.max_rows(),
        hidden_size=teacher.hidden_size,
        dtype_name="float32",
    )
    losses: list[float] = []
    scores, written, weights, in_flight, changed = [], [], [], [], []
    assert place.socket is not None
    with StudentEnd(
        place.socket, rank=place.rank, world_size=place.world_size, layout=layout, slots=2
    ) as end:
        feed = TeacherFeed(iter(batches), end)
        feed.refill()
        for step in range(STEPS + 1):
            if look:
                in_flight.append(len(feed._sent))
                before = _state(student)
                mine = held_out.score()
                path = probes.write(directory, step)
                changed += [name for name, was in before.items() if was != _state(student)[name]]
                by_rank: list[Any] = [None] * place.world_size
                dist.all_gather_object(by_rank, mine)
                scores.append(by_rank)
                written.append(read(path))
                weights.append(_weights(student))
            if step < STEPS:
                losses.append(_step(student, optimizer, algorithm, feed, head, plan, step))
        dist.barrier()  # nobody leaves before all have asked for the last time
        others = _others(student, table, given) if look else {}
    asked = sum(map(_ran, batches))
    if look:
        for rows in (held_out._rows, probes._rows):
            asked += sum(map(_ran, rows.batches))
        asked += 1 if place.rank == 0 else 0  # the single row of `_others`
    calls = torch.tensor([asked])
    dist.all_reduce(calls)
    return Looked(
        losses, scores, written, weights, in_flight, changed, teacher.calls, int(calls), others
    )


def _ran(batch: MicroBatch) -> int:
    """Whether the teacher runs it."""
    return int(batch.input_ids.numel() > 0)


def _step(
    student: Student, optimizer: Any, algorithm: Any, feed: Any, head: Any, plan: Any, step: int
) -> float:
    planned = plan.step(step)
    return distill_step(
        student,
        optimizer,
        algorithm,
        feed,
        head,
        micro_batches=len(planned.micro_batches),
        num_valid_tokens=planned.num_valid_tokens,
        max_grad_norm=1.0,
    ).loss


def _others(student: Student, table: TokenTable, given: dict[str, Any]) -> dict[str, Any]:
    """See `Looked.others`. One row: two ranks cannot both have a part in it."""
    place: StudentPlace = given["place"]
    wrong, told = given["teacher"], ""
    if place.rank == place.world_size - 1:
        wrong = dataclasses.replace(wrong, hidden_size=1)
    try:
        HeldOut(student, table, **{**given, "teacher": wrong}).score()
    except TransportError as error:
        told = str(error)
    refused: list[Any] = [None] * place.world_size
    dist.all_gather_object(refused, told)
    alone = {**given, "teacher": None, "teacher_head": None}
    return {
        "refused": refused,
        "one row": HeldOut(student, table.first(1), **given).score(),
        "sft": HeldOut(student, table, **alone).score(),
    }


def _state(student: Student) -> dict[str, Any]:
    """What looking must not change; values that can be compared."""
    model = student.model
    return {
        "training": [module.training for module in model.modules()],
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "parameters": [type(parameter) for parameter in model.parameters()],
        "gradients": [
            None if parameter.grad is None else parameter.grad.to_local().clone().tolist()
            for parameter in model.parameters()
        ],
    }


def _weights(student: Student) -> dict[str, Tensor]:
    return {
        name: parameter.full_tensor().detach().clone()  # type: ignore[attr-defined]
        for name, parameter in student.model.named_parameters()
    }


def both_ways(rank: int, world_size: int, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the zoo's student as `Lab.evaluate` does, and as a live one."""
    place = _place(rank, world_size, folder, "zoo")
    paths = [resolve_model(f"zoo/{name}") for name in ("teacher", "student")]
    teacher = TransformersTeacher(paths[0])
    info = _info(paths[0], teacher)
    data: dict[str, Any] = {"split": "test", "rows": 40, "seed": 0}
    options = {"generate": False, "max_new_tokens": 1, "max_length": 512}
    job = SubjectJob(
        place=place,
        model=paths[1],
        is_run=False,
        data="zoo/tasks",
        teacher=info,
        options=options,
        **data,
    )
    with _serving(teacher, place):
        lines: list[Any] = [None] * world_size
        dist.all_gather_object(lines, subject.score(job, lambda done, total: None))
        dataset = sources.load("zoo/tasks", **data)
        table, _ = tokenize(dataset, load_tokenizer(paths[1]), max_length=512)
        config = DistillConfig.parse(precision="float32")
        mesh = init_device_mesh("cpu", (world_size,))
        live = HeldOut(
            Student(paths[1], config=config, mesh=mesh),
            table,
            teacher=info,
            teacher_head=Head.from_pretrained(paths[0], dtype=torch.float32),
            place=place,
        ).score()
    from kdflow_lab.evaluate.report import Evaluation

    return Evaluation.merge(lines, name="student").to_dict(), live
