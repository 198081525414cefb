"""Bytes by part: against what autograd really keeps, and against counts by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from kdflow_lab.attention import decode, use_packed_attention
from kdflow_lab.config import DistillConfig
from kdflow_lab.plan.make import Basis
from kdflow_lab.plan.memory import (
    activations,
    chunk_bytes,
    held_out_bytes,
    ring_bytes,
    saved_floats,
    student_parts,
    teacher_parts,
)
from kdflow_lab.plan.sizes import model_size
from kdflow_lab.plan.workload import padded, workload

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
LENGTHS = (40, 64, 33, 128, 100, 90)


@pytest.mark.parametrize("config", [Qwen3Config(**SHAPE), LlamaConfig(**SHAPE)])
def test_activations_are_what_autograd_keeps(config: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(config).train()
    model.save_pretrained(tmp_path)
    size = model_size(tmp_path)
    use_packed_attention(model)
    kept: dict[int, int] = {}
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tokens = int(ends[-1])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        hidden = decode(
            model.get_decoder(), torch.ones(tokens, dtype=torch.int64), ends, packed=True, pad_id=0
        )
    share = padded(LENGTHS) / tokens
    predicted = 4 * activations(size, tokens, share, again=False)
    assert sum(kept.values()) == pytest.approx(predicted, rel=0.1)
    assert hidden.shape == (tokens, 128)


def test_checkpointed_layers_keep_their_input_and_one_of_them_all(basis: Basis) -> None:
    size = basis.setting.student
    whole = activations(size, 100, 1.2, again=False)
    again = activations(size, 100, 1.2, again=True)
    assert again == 100 * ((size.layers + 3) * size.hidden + saved_floats(size, 1.2))
    assert again < whole


def test_a_student_by_hand(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    size = basis.setting.student
    parts, moment = student_parts(basis.setting, work, basis.config)
    assert parts["weights"] == 4 * size.parameters
    assert parts["optimizer"] == 8 * size.parameters
    layer = size.layer_parameters / size.layers
    assert parts["gathered weights"] == 4 * (size.root + 2 * layer)
    teacher = basis.setting.teacher
    assert teacher is not None
    assert parts["teacher's head"] == 4 * 1024 * teacher.hidden
    assert moment == "the start of the backward pass" or moment == "the loss of a micro-batch"
    assert parts["head's gradient"] == 4 * 1024 * size.hidden


def test_sharding_and_bfloat16_make_a_student_smaller(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    whole, _ = student_parts(basis.setting, work, basis.config)
    two = dataclasses.replace(basis.setting, students=2)
    half, _ = student_parts(two, work, basis.config)
    assert half["optimizer"] == whole["optimizer"] / 2
    assert half["gathered weights"] == whole["gathered weights"]
    narrow, _ = student_parts(
        dataclasses.replace(basis.setting, student_bytes=2), work, basis.config
    )
    assert narrow["activations"] < 0.6 * whole["activations"]
    assert narrow["optimizer"] == whole["optimizer"]


def test_lora_has_moments_of_its_adapters_alone(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    parts, _ = student_parts(basis.setting, work, DistillConfig(lora_r=4))
    whole, _ = student_parts(basis.setting, work, basis.config)
    assert parts["optimizer"] < 0.3 * whole["optimizer"]
    assert "head's gradient" not in parts
    assert parts["weights"] > whole["weights"]


def test_checkpointing_and_smaller_chunks_take_less(basis: Basis) -> None:
    config = DistillConfig(rows=300, steps=20, activation_checkpointing=True, chunk_tokens=16)
    work = workload(basis.lengths, config, 1)
    smaller, _ = student_parts(basis.setting, work, config)
    larger, _ = student_parts(basis.setting, work, basis.config)
    assert smaller["activations"] < 0.8 * larger["activations"]
    assert chunk_bytes(basis.setting, work, config) < chunk_bytes(basis.setting, work, basis.config)


def test_the_ring_and_the_teacher_by_hand(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    teacher = basis.setting.teacher
    assert teacher is not None
    touched, whole = ring_bytes(basis.setting, work, basis.config)
    rows = 2 * work.largest_asked * 4 * teacher.hidden
    assert rows < touched < rows + 2 * (64 + 4 * (3 * work.sizes.tokens + 99) + 4096)
    assert touched <= whole
    parts = teacher_parts(basis.setting, work)
    assert parts["weights"] == 4 * teacher.decoder
    per_token = 3 * teacher.intermediate + 3 * teacher.hidden
    assert parts["activations"] >= 4 * work.largest_teacher_tokens * per_token


def test_held_out_rows_cost_only_where_they_are_looked_at(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    assert held_out_bytes(basis.setting, work, basis.config) == 0
    evaluated = DistillConfig(rows=300, eval_every=5, eval_rows=64)
    teacher = basis.setting.teacher
    assert teacher is not None
    expected = 64 * work.asked / 32 * teacher.hidden * 4
    assert held_out_bytes(basis.setting, work, evaluated) == pytest.approx(expected)


def test_a_tied_head_in_the_files_own_dtype_is_counted_once(basis: Basis) -> None:
    work = workload(basis.lengths, basis.config, 1)
    teacher = basis.setting.teacher
    assert teacher is not None and teacher.tied and teacher.dtype == "bfloat16"
    mapped = dataclasses.replace(basis.setting, teacher_dtype="bfloat16")
    assert teacher_parts(mapped, work)["weights"] == 2 * (teacher.decoder - teacher.head)
    on_gpu = dataclasses.replace(mapped, on_gpu=True)
    assert teacher_parts(on_gpu, work)["weights"] == 2 * teacher.decoder
