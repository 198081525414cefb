"""Bytes of every process, part by part: what must be resident when a step needs most.

A student's step has three moments that may need most, and the plan shows the largest: the loss of a
micro-batch (activations, a chunk of logits, the gradient of the head), the start of the backward
pass, and its end (gradients, and the root's on their way to be sharded). The optimizer's step is
fused and needs nothing besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdflow_lab.losses import _chunks
from kdflow_lab.plan import constants
from kdflow_lab.plan.sizes import ModelSize, adapter_parameters
from kdflow_lab.transport.layout import ITEM_BYTES, SlotLayout

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.plan.workload import Workload

MOST_CHUNK_TEMPORARIES = 6
HOST = "host"


@dataclass(frozen=True, slots=True)
class Process:
    """What one process is expected to take.

    Attributes:
        name: `supervisor`, `controller`, `teacher`, `student 0` …, or `rollout`.
        device: `host`, or `cuda:0` and so on.
        parts: Bytes by part, of the moment that needs most.
        moment: Which that is, in words; empty for a process without phases.
    """

    name: str
    device: str
    parts: Mapping[str, float]
    moment: str = ""

    @property
    def kind(self) -> str:
        """The name without a student's number."""
        return self.name.partition(" ")[0]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the processes of a run are made of.

    Attributes:
        teacher: Its size; None for a run without one.
        idle_teacher: Of a run without one: the lab's, which is loaded all the same.
        student: The student's.
        teacher_dtype: Of its weights and hidden rows.
        teacher_backend: `transformers` or `sglang`.
        student_bytes: Of a number in the student's computation: 4 or 2.
        on_gpu: Whether teacher and students compute on GPUs.
        students: Number of ranks.
        vocabulary: Columns of the logits that the loss looks at, the student's and the teacher's.
    """

    teacher: ModelSize | None
    idle_teacher: ModelSize | None
    student: ModelSize
    teacher_dtype: str
    teacher_backend: str
    student_bytes: int
    on_gpu: bool
    students: int
    vocabulary: tuple[int, int]


def forward_floats(size: ModelSize, padded: float) -> float:
    """Numbers a token that a forward pass without gradients holds at most: one layer's.

    The larger of the MLP (gate, its activation or their product, and the way up, beside residual
    and normed input) and the attention (queries, keys and values as projected, as gathered into
    groups with padding, and the result).

    Args:
        size: Of the model.
        padded: Places of the attention a token, 1 without padding.
    """
    mlp = (3 if size.gated else 2) * size.intermediate + 3 * size.hidden
    projected = size.query + 2 * size.key
    gathered = padded * (2 * size.query + 2 * max(size.query, size.key))
    return max(mlp, 2 * size.hidden + projected + size.query + gathered)


def saved_floats(size: ModelSize, padded: float) -> float:
    """Numbers a token that one layer keeps for its backward pass.

    Two norms keep their input, the normed input and their output (6 hidden; the inputs are the
    residual's two states). Queries and keys keep what their own norms see, if they have any;
    attention keeps gathered queries, keys, values (repeated to the query heads) and its result; the
    output projection its input. A gated MLP keeps gate, activation, way up and product.

    Args:
        size: Of the model.
        padded: Places of the attention a token, 1 without padding.
    """
    norms = 6 * size.hidden
    heads = 2 * (size.query + size.key) if size.normed_heads else 0
    attention = padded * 4 * size.query + size.query
    return norms + heads + attention + (4 if size.gated else 2) * size.intermediate


def activations(size: ModelSize, tokens: int, padded: float, *, again: bool) -> float:
    """Numbers of a student's activations when its loss is computed.

    Args:
        size: The student's.
        tokens: Of the micro-batch.
        padded: Places of the attention a token.
        again: Layers are run again in the backward pass (`activation_checkpointing`): they keep
            their input, and one of them what it needs for its own.
    """
    layer = saved_floats(size, padded)
    last = 3 * size.hidden  # the final norm
    if again:
        return tokens * (size.layers * size.hidden + layer + last)
    return tokens * (size.layers * layer + last)


def ring_bytes(setting: Setting, work: Workload, config: DistillConfig) -> tuple[float, int]:
    """Bytes of a student's ring that are touched, and of its slots: what they could hold at most.

    A slot's pages are taken when they are first written, so the largest micro-batch counts.
    """
    if setting.teacher is None:
        return 0.0, 0
    layout = SlotLayout(
        max_tokens=work.sizes.tokens,
        max_sequences=work.sizes.sequences,
        max_rows=work.sizes.rows,
        hidden_size=setting.teacher.hidden,
        dtype_name=setting.teacher_dtype,
    )
    slots = config.teacher_batches_per_phase or max(1, config.depth)
    touched = layout.hidden_offset + work.largest_asked * layout.row_bytes
    return float(slots * min(touched, layout.slot_bytes)), slots * layout.slot_bytes


def chunk_bytes(setting: Setting, work: Workload, config: DistillConfig) -> float:
    """Bytes of the loss's chunk: logits of both models, a block's temporaries, its own gradients.

    `kdflow_lab.losses._chunks.plan` chooses the rows, here as there.
    """
    width = max(setting.vocabulary)
    row_bytes = setting.vocabulary[0] * setting.student_bytes
    if setting.teacher is not None:
        row_bytes += setting.vocabulary[1] * setting.student_bytes
    rows = work.largest_responses
    chosen = _chunks.plan(
        config.chunk_tokens,
        num_tokens=rows,
        width=width,
        row_bytes=row_bytes,
        temporaries=MOST_CHUNK_TEMPORARIES,
        extra_bytes=rows * setting.student.hidden * setting.student_bytes,
        device=torch.device("cuda" if setting.on_gpu else "cpu"),
    )
    held = min(rows, chosen.chunk_tokens)
    block = min(held, chosen.block_tokens) * width * 4 * MOST_CHUNK_TEMPORARIES / 2
    return float(held * row_bytes + block)


def student_parts(
    setting: Setting, work: Workload, config: DistillConfig
) -> tuple[dict[str, float], str]:
    """Bytes of one student by part, and the moment that needs most.

    Weights, gradients and the optimizer's two moments are float32 and sharded; FSDP2 gathers the
    root (embeddings, head) for the whole pass and one or two layers at a time, in the compute
    dtype, with one rank, too.
    """
    size, ranks, item = setting.student, setting.students, setting.student_bytes
    rank = config.lora_r
    trained = size.parameters
    if rank is not None:
        trained = adapter_parameters(size, rank, config.lora_target_modules)
    whole = trained == size.parameters
    frozen = 0 if whole else trained
    layer = size.layer_parameters / max(1, size.layers)
    head = size.head if whole else 0
    embedding = 2 * head if size.tied else head  # its own gradient, beside the head's
    fixed = {
        "weights": 4.0 * (size.parameters + frozen) / ranks,
        "gathered weights": float(item * (size.root + 2 * layer)),
        "optimizer": 8.0 * trained / ranks,
        "tokens": float(work.token_bytes),
    }
    if setting.teacher is not None:
        fixed["teacher's head"] = float(
            setting.vocabulary[1] * setting.teacher.hidden * ITEM_BYTES[setting.teacher_dtype]
        )
    padded = work.largest_padded / max(1, work.largest_tokens)
    kept = item * activations(
        size, work.largest_tokens, padded, again=config.activation_checkpointing
    )
    hidden = 2.0 * item * work.largest_responses * size.hidden
    several = work.micro_batches > 1.0
    moments = {
        "the loss of a micro-batch": {
            "activations": kept + hidden,
            "chunk of logits": chunk_bytes(setting, work, config),
            "gradients": 4.0 * trained / ranks if several else 0.0,
            "head's gradient": 4.0 * head,
        },
        "the start of the backward pass": {
            "activations": kept + item * work.largest_tokens * saved_floats(size, padded) / 2,
            "gradients": 4.0 * trained / ranks if several else 4.0 * 3 * layer * whole,
            "head's gradient": 4.0 * head,
        },
        "the end of the backward pass": {
            "activations": kept / max(1, size.layers),
            "gradients": 4.0 * trained / ranks,
            "head's gradient": 4.0 * embedding + (4.0 * size.root if whole else 0.0),
        },
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    if not setting.on_gpu:
        for part in ("activations", "chunk of logits"):
            if part in moments[moment]:
                moments[moment][part] *= constants.SLACK
    return {**fixed, **{name: n for name, n in moments[moment].items() if n}}, moment


def held_out_bytes(setting: Setting, work: Workload, config: DistillConfig) -> float:
    """Bytes of the teacher's rows for evaluations and probes, on one rank (`TaughtRows`)."""
    if setting.teacher is None:
        return 0.0
    rows = (config.eval_rows if config.eval_every else 0) + (
        config.probe_rows if config.probe_every else 0
    )
    asked = rows * work.asked / max(1, config.batch_size)
    return asked * setting.teacher.hidden * ITEM_BYTES[setting.teacher_dtype] / setting.students


def teacher_parts(setting: Setting, work: Workload) -> dict[str, float]:
    """Bytes of the teacher by part: its decoder, and one layer of its largest micro-batch.

    On a CPU weights in the file's own dtype are the file's pages. Those of a head that is tied are
    then the same pages as the students' copy of it, where they are counted.
    """
    size, item = setting.teacher or setting.idle_teacher, ITEM_BYTES[setting.teacher_dtype]
    assert size is not None
    if setting.teacher is None:
        return {"weights": float(item * size.decoder)}
    padded = work.largest_padded / max(1, work.largest_tokens)
    floats = forward_floats(size, padded) + size.hidden
    mapped = not setting.on_gpu and size.tied and size.dtype == setting.teacher_dtype
    return {
        "weights": float(item * (size.decoder - size.head if mapped else size.decoder)),
        "activations": item * work.largest_teacher_tokens * floats,
    }


def cache_parts(config: DistillConfig, setting: Setting, work: Workload) -> dict[str, float]:
    """Bytes of host memory for the hidden-state cache's rows: one micro-batch of them.

    The cache itself is a file that students map; its pages can be given back at any time.
    """
    if setting.teacher is None or not config.cache:
        return {}
    item = ITEM_BYTES[setting.teacher_dtype]
    return {"cache buffers": float(item * work.largest_asked * setting.teacher.hidden)}
