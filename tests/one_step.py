"""One distillation step on 1 or 2 ranks in real processes: its loss and its whole gradient.

Run as a module's function in spawned processes; the cases of one world size share them, since
starting a process and importing torch takes longer than all the steps.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdflow_lab import zoo
from kdflow_lab.algorithms import crosses_tokenizers, make_algorithm
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.config import DistillConfig
from kdflow_lab.data.batches import pack
from kdflow_lab.data.both import tokenize_for_both
from kdflow_lab.data.plan import DataPlan
from kdflow_lab.data.tokens import TokenTable
from kdflow_lab.load import load_tokenizer
from kdflow_lab.losses import Head
from kdflow_lab.student.feed import TeacherFeed
from kdflow_lab.student.fsdp import Student
from kdflow_lab.teacher.base import serve
from kdflow_lab.teacher.transformers import TransformersTeacher
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import TeacherEnd

VOCABULARY = 40


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs between two ways of taking the same step."""

    micro_batch_rows: int | None = None
    packing: bool = True
    chunk_tokens: int | str = "auto"
    ring: bool = False
    activation_checkpointing: bool = False
    batch_size: int = 12
    loss: str = "forward_kl"
    loss_params: dict[str, Any] = dataclasses.field(default_factory=dict)
    hidden_loss: str = "none"
    kd_ratio: float = 0.6
    sft: bool = False
    precision: str = "float32"
    algorithm: str = "vanilla_kd"
    algorithm_params: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step:
    """What rank 0 knows when the gradients are there.

    Attributes:
        loss: Summed over ranks and micro-batches.
        gradients: Of every parameter, whole.
        tokens_by_rank: Response tokens of each rank.
        ring_operations: Names of the torch operations that got a tensor inside the ring's mapping
            as an argument while the loss was computed, in order.
    """

    loss: float
    gradients: dict[str, Tensor]
    tokens_by_rank: list[int]
    ring_operations: list[str]


class RingWatch(TorchDispatchMode):
    """Notes every operation that touches memory of the ring; views of it are not noted."""

    def __init__(self, end: StudentEnd) -> None:
        super().__init__()
        self.end = end
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if type(one) is Tensor]
        is_view = any(
            argument.alias_info and not argument.alias_info.is_write
            for argument in func._schema.arguments
        )
        if not is_view and any(one.numel() and self.end.contains(one) for one in tensors):
            self.operations.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def make_models(folder: Path, *, tied: bool) -> tuple[str, str]:
    """Write a tiny teacher and a tiny student with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    paths = []
    for name, size in (("teacher", 24), ("student", 16)):
        torch.manual_seed(size)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=size,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            pad_token_id=0,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        paths.append(str(folder / name))
    return paths[0], paths[1]


def make_table(rows: int = 12) -> TokenTable:
    """Rows of very different lengths, so that ranks get unequal tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 60, rows)
    masks = []
    for length in lengths:
        mask = np.zeros(length, dtype=np.uint8)
        mask[generator.integers(1, length) :] = 1
        masks.append(mask)
    ids = generator.integers(1, VOCABULARY, lengths.sum()).astype(np.int32)
    return TokenTable(
        input_ids=ids,
        response_mask=np.concatenate(masks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row_index=np.arange(rows, dtype=np.int32),
    )


def assert_same(ours: Step, theirs: Step) -> None:
    """1e-5 of the loss, and of each parameter's gradient relative to its largest element."""
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, expected in theirs.gradients.items():
        scale = expected.abs().max().item()
        assert scale > 0, f"{name} has no gradient: the comparison would say nothing"
        torch.testing.assert_close(
            ours.gradients[name], expected, rtol=1e-5, atol=1e-5 * scale, msg=name
        )


def across(teacher_path: str, student_path: str) -> tuple[TokenizerPair, TokenTable]:
    """Rows of the zoo's tasks, as two models with tokenizers of their own read them."""
    theirs, ours = load_tokenizer(teacher_path), load_tokenizer(student_path)
    pair = TokenizerPair.of(theirs, ours)
    rows = zoo.dataset("zoo/tasks", rows=12, seed=3)
    return pair, tokenize_for_both(rows, ours, theirs, pair=pair, max_length=128)[0]


def steps(world_size: int, models: tuple[str, str], cases: list[Case]) -> list[Step]:
    """Take one step for each case on `world_size` ranks; what rank 0 has in the end."""
    with tempfile.TemporaryDirectory(prefix="kdflow-step-") as folder:
        return on_ranks(world_size, _steps, folder, models, cases)[0]


def _steps(folder: str, models: tuple[str, str], cases: list[Case]) -> list[Step] | None:
    taken = [_step(f"{folder}/{i}.sock", models, case) for i, case in enumerate(cases)]
    return taken if dist.get_rank() == 0 else None


def _step(socket: str, models: tuple[str, str], case: Case) -> Step:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    teacher_path, student_path = models
    config = DistillConfig.parse(
        algorithm="sft" if case.sft else case.algorithm,
        algorithm_params=case.algorithm_params,
        loss=case.loss,
        loss_params=case.loss_params,
        hidden_loss=case.hidden_loss,
        kd_ratio=0.0 if case.sft else case.kd_ratio,
        packing=case.packing,
        chunk_tokens=case.chunk_tokens,
        activation_checkpointing=case.activation_checkpointing,
        precision=case.precision,
    )
    pair = None
    table = make_table()
    if crosses_tokenizers(config.algorithm):
        pair, table = across(teacher_path, student_path)
    plan = DataPlan(
        table.longest_lengths,
        table.response_lengths,
        asked_lengths=table.asked.response_lengths,
        batch_size=case.batch_size,
        world_size=world_size,
        micro_batch_tokens=512,
        micro_batch_rows=case.micro_batch_rows,
        seed=1,
    )
    step = plan.step(0)
    batches = [
        pack(table, by_rank[rank], step=0, index=index)
        for index, by_rank in enumerate(step.micro_batches)
    ]
    algorithm: Any = make_algorithm(config)
    teacher = TransformersTeacher(teacher_path)
    teacher_head = Head.from_pretrained(teacher_path, dtype=torch.float32)
    if pair is not None:
        algorithm.meet(pair, len(pair.student), len(pair.teacher))

    def beside(head: Head) -> Any:
        module = algorithm.beside(head.weight.shape[1], teacher.hidden_size)
        if module is not None and hasattr(algorithm, "init_beside"):
            algorithm.init_beside(head, teacher_head)
        return module

    student = Student(
        student_path,
        config=config,
        mesh=init_device_mesh("cpu", (world_size,)),
        beside=beside if hasattr(algorithm, "beside") else None,
    )
    total = torch.zeros(())
    operations: list[str] = []

    def learn(batch: Any, hidden: Tensor | None) -> None:
        nonlocal total
        output = student.loss(batch, algorithm, hidden, teacher_head, step.num_valid_tokens)
        total = total + output.loss.detach()
        student.backward(output.loss)

    if case.ring:
        layout = SlotLayout(
            max_tokens=plan.max_tokens(),
            max_sequences=plan.max_sequences(),
            max_rows=plan.max_rows(),
            hidden_size=teacher.hidden_size,
            dtype_name="float32",
        )
        server = None
        if rank == 0:
            server = threading.Thread(target=_serve, args=(teacher, socket, world_size))
            server.start()
        with StudentEnd(socket, rank=rank, world_size=world_size, layout=layout, slots=2) as end:
            feed = TeacherFeed(iter(batches), end)
            for _ in batches:
                batch, rows = feed.next()
                assert rows is not None
                with RingWatch(end) as watch:
                    learn(batch, rows.tensor)
                operations += watch.operations
                rows.release()
                feed.refill()
        if server is not None:
            server.join()
    else:
        for batch in batches:
            asked = batch.asked
            hidden = torch.empty(asked.rows.numel(), teacher.hidden_size)
            if asked.input_ids.numel():
                teacher.hidden_states(asked.input_ids, asked.cu_seqlens, asked.rows, hidden)
            learn(batch, None if case.sft else hidden)
    dist.all_reduce(total)
    mine = sum(batch.rows.numel() for batch in batches)
    by_rank: list[Any] = [None] * world_size
    dist.all_gather_object(by_rank, mine)
    gradients = {
        name: parameter.grad.full_tensor().clone()  # type: ignore[union-attr]
        for name, parameter in student.model.named_parameters()
        if parameter.grad is not None
    }
    return Step(total.item(), gradients, by_rank, operations)


def _serve(teacher: TransformersTeacher, socket: str, world_size: int) -> None:
    torch.set_num_threads(1)
    with TeacherEnd(socket, world_size=world_size) as end:
        serve(teacher, end)
