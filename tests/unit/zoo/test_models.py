"""The zoo's models before training, and what a saved one is."""

from __future__ import annotations

import json

import pytest
import torch

from kdflow_lab.errors import ConfigError
from kdflow_lab.zoo.models import SHAPES, new_model
from kdflow_lab.zoo.train import RECIPES, lr_factor, save


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_student_is_more_than_five_times_smaller(tokenizer):
    teacher, student = new_model("teacher", tokenizer), new_model("student", tokenizer)
    assert _parameters(teacher) == pytest.approx(3.48e6, rel=0.01)
    assert _parameters(teacher) > 5 * _parameters(student)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_begin_at_one_over_the_root_of_the_hidden_size(tokenizer, name):
    model = new_model(name, tokenizer)
    hidden = SHAPES[name]["hidden_size"]
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(hidden**-0.5, rel=0.05), key


def test_a_seed_gives_one_model(tokenizer):
    a, b, c = (new_model("student", tokenizer, seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_models_know_their_tokenizer(tokenizer):
    model = new_model("student", tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().weight is model.lm_head.weight


def test_a_saved_model_is_a_complete_folder_in_bfloat16(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = new_model("student", tokenizer, seed=3)
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * _parameters(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16()), name
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokenizer)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert model.dtype == torch.float32  # the trained model itself stays as it is


def test_the_recipes_rate_rises_stays_and_falls_to_nothing():
    steps = RECIPES["teacher"].steps
    factors = [lr_factor(step, steps) for step in range(steps)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[100 : steps // 2] == [1.0] * (steps // 2 - 100)
    assert factors[steps * 3 // 4] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3


def test_an_unknown_model_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="Did you mean 'teacher'"):
        new_model("teachr", tokenizer)
