"""Sizes from configs and headers, against the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3Config

from kdflow_lab import zoo
from kdflow_lab.errors import ModelError
from kdflow_lab.plan.sizes import adapter_parameters, model_size

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "own head": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "tied": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    "experts": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=1),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_headers_count_what_the_model_counts(kind: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    model.save_pretrained(tmp_path)
    size = model_size(tmp_path)
    assert size.parameters == model.num_parameters()
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
    assert size.layer_parameters == layers
    assert size.tied is (kind == "tied")
    assert size.head == 96 * 64
    assert size.decoder == sum(p.numel() for p in model.get_decoder().parameters())
    assert (size.hidden, size.layers, size.vocabulary) == (64, 2, 96)
    assert (size.query, size.key) == (64, 32)
    assert size.normed_heads is (kind == "tied")
    if kind == "experts":  # one of four is run
        experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
        assert size.active == layers - round(experts * 3 / 4)
    else:
        assert size.active == layers


def test_the_zoo_is_counted() -> None:
    for name in zoo.MODELS:
        path = zoo.path(name)
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model_size(path).parameters == model.num_parameters()
        assert model_size(path).dtype == "bfloat16"


def test_adapters_count_rows_and_columns_of_the_layers_they_adapt(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS["own head"]).save_pretrained(tmp_path)
    size = model_size(tmp_path)
    attention = (64 + 64) + 2 * (64 + 32) + (64 + 64)
    mlp = 3 * (64 + 80)
    assert adapter_parameters(size, 4, "all-linear") == 2 * 4 * (attention + mlp)
    assert adapter_parameters(size, 4, ["q_proj"]) == 2 * 4 * 128
    both = adapter_parameters(size, 4, ["all-linear", "lm_head"])
    assert both == 2 * 4 * (attention + mlp) + 4 * (96 + 64)


def test_a_torn_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["tied"])
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\n")
    with pytest.raises(ModelError, match="header of"):
        model_size(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors"):
        model_size(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        model_size(tmp_path)


def test_no_weight_is_read(tmp_path: Path) -> None:
    """Only headers: the data behind them may be missing altogether."""
    model = AutoModelForCausalLM.from_config(CONFIGS["tied"], dtype=torch.float32)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    assert model_size(tmp_path).parameters == model.num_parameters()
