"""Heads taken from real model folders give the models' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from kdflow_lab.errors import ModelError, ShapeError
from kdflow_lab.losses import Head
from kdflow_lab.losses.head import output_transform

V, H = 40, 16
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "bias": PhiConfig(**SIZES),
    "embed_out": GPTNeoXConfig(**SIZES, tie_word_embeddings=False),
    "soft_cap": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.05),
    "logit_scale": CohereConfig(**SIZES, logit_scale=0.3),
    "logits_scaling": GraniteConfig(**SIZES, logits_scaling=7.0),
}


def _model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a forgotten bias
            torch.nn.init.normal_(parameter)
    return model


@torch.no_grad()
def _hidden_and_logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(1, 12)[None]
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0], output.logits[0]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("shard_size", ["1GB", "2KB"])
def test_the_folders_head_gives_the_models_own_logits(tmp_path, kind, shard_size):
    """Tied, untied, with a bias, a scale or a soft-cap; in one file and in a sharded index."""
    model = _model(CONFIGS[kind])
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "2KB")
    hidden, logits = _hidden_and_logits(model)

    head = Head.from_pretrained(tmp_path, dtype=torch.float32)

    torch.testing.assert_close(head.logits(hidden), logits, rtol=1e-5, atol=1e-6)
    assert head.width == V
    assert (head.bias is not None) == (kind == "bias")


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loaded_models_head_is_the_folders_head(tmp_path, kind):
    model = _model(CONFIGS[kind])
    model.save_pretrained(tmp_path)
    of, read = Head.of(model), Head.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(of.weight, read.weight)
    assert (of.logit_scale, of.soft_cap) == (read.logit_scale, read.soft_cap)
    assert (of.bias is None) == (read.bias is None)


def test_scale_and_soft_cap_are_what_the_config_says():
    """Each of them changes the logits, so the comparisons above cannot pass without it."""
    assert output_transform(CONFIGS["untied"]) == {"logit_scale": 1.0, "soft_cap": None}
    assert output_transform(CONFIGS["soft_cap"]) == {"logit_scale": 1.0, "soft_cap": 0.05}
    assert output_transform(CONFIGS["logit_scale"]) == {"logit_scale": 0.3, "soft_cap": None}
    assert output_transform(CONFIGS["logits_scaling"])["logit_scale"] == pytest.approx(1 / 7)
    nested = {"text_config": {"final_logit_softcapping": 30.0}, "logit_scale": 9.0}
    assert output_transform(nested) == {"logit_scale": 1.0, "soft_cap": 30.0}


def test_a_stale_lm_head_beside_tied_embeddings_is_not_used(tmp_path):
    """What `transformers` does with such a file: the embeddings are the head."""
    from safetensors.torch import load_file, save_file

    model = _model(CONFIGS["tied"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.ones(V, H)}, file, {"format": "pt"})
    head = Head.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(head.weight, model.get_input_embeddings().weight)


def test_the_head_is_read_in_the_asked_dtype(tmp_path):
    _model(CONFIGS["bias"]).save_pretrained(tmp_path)
    head = Head.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert head.weight.dtype == torch.bfloat16
    assert head.bias is not None
    assert head.bias.dtype == torch.bfloat16
    assert head.logits(torch.randn(3, H, dtype=torch.bfloat16)).dtype == torch.float32


def test_cut_keeps_the_first_columns_and_never_widens():
    torch.manual_seed(0)
    head = Head(torch.randn(V, H), torch.randn(V), logit_scale=0.5, soft_cap=3.0)
    hidden = torch.randn(5, H)
    torch.testing.assert_close(head.cut(11).logits(hidden), head.logits(hidden)[:, :11])
    assert head.cut(11).width == 11
    assert head.cut(11).weight is head.weight  # a view of the same rows, no copy
    assert head.cut(V + 100).width == V


def test_float64_stays_float64():
    head = Head(torch.randn(V, H, dtype=torch.float64), logit_scale=0.5, soft_cap=3.0)
    assert head.logits(torch.randn(2, H, dtype=torch.float64)).dtype == torch.float64


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="LlamaModel has no language-model head"):
        Head.of(AutoModel.from_config(CONFIGS["untied"]))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        Head.from_pretrained(tmp_path, dtype=torch.float32)


def test_a_folder_without_a_head_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"neither lm_head\.weight nor model\.embed_tokens"):
        Head.from_pretrained(Path(tmp_path), dtype=torch.float32)


def test_a_hidden_size_that_is_not_the_heads_is_refused():
    with pytest.raises(ShapeError, match="are 8 wide, the head expects 16"):
        Head(torch.zeros(V, H)).logits(torch.zeros(2, 8))
