"""Batched answers are what the model says to each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from kdflow_lab.evaluate.generation import generate

V, PAD = 23, 0


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    """A random model with loud weights: its answers depend on the whole prompt."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, initializer_range=0.5,
        tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3], [2, 2], [11, 12, 13, 14], [3, 1, 4, 1, 5]]


@torch.no_grad()
def _by_hand(model: Any, prompt: list[int], stop_ids: list[int], max_new_tokens: int) -> list[int]:
    """The likeliest token again and again, without cache, padding or `generate`."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def _generate(model: Any, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[int]]:
    options = {"pad_id": PAD, "stop_ids": [], "max_new_tokens": 8} | options
    return generate(model, prompts, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_greedy_answers_are_those_of_one_prompt_alone_in_the_prompts_order(model, batch_size):
    expected = [_by_hand(model, prompt, [], 8) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 3  # the prompts matter
    assert _generate(model, batch_size=batch_size) == expected


def test_answers_end_before_a_stop_id(model):
    free = _generate(model)
    stops = sorted({answer[2] for answer in free})[:2]
    answers = _generate(model, stop_ids=stops)
    assert answers == [_by_hand(model, prompt, stops, 8) for prompt in PROMPTS]
    assert any(len(answer) < 8 for answer in answers)
    assert not any(stop in answer for stop in stops for answer in answers)


def test_an_answer_can_be_empty(model):
    first = _generate(model, [[5, 6, 7]])[0][0]
    assert _generate(model, [[5, 6, 7]], stop_ids=[first]) == [[]]


def test_a_generated_padding_id_is_a_token_like_any_other(model):
    """Only stop ids end an answer, so that a model whose padding is its end still works."""
    token = _generate(model, [[5, 6, 7]])[0][3]
    assert _generate(model, [[5, 6, 7], [1]], pad_id=token)[0] == _by_hand(model, [5, 6, 7], [], 8)


def test_the_longest_answer_is_cut(model):
    assert {len(answer) for answer in _generate(model, max_new_tokens=3)} == {3}


def test_sampling_is_seeded_and_independent_of_torchs_own_state(model):
    first = _generate(model, temperature=1.5, seed=1)
    torch.manual_seed(99)
    assert _generate(model, temperature=1.5, seed=1) == first
    assert _generate(model, temperature=1.5, seed=2) != first


def test_sampling_follows_the_models_distribution(model):
    """From the whole vocabulary, at the asked temperature."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    expected = torch.softmax(logits / 2.0, -1)
    answers = _generate(
        model, [[5, 6, 7]] * 4000, temperature=2.0, max_new_tokens=1, batch_size=4000
    )
    counts = torch.zeros(V)
    for (token,) in answers:
        counts[token] += 1
    assert (counts / 4000 - expected).abs().max() < 0.035


def test_progress_is_told_after_every_batch(model):
    told: list[tuple[int, int]] = []
    _generate(model, batch_size=4, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_no_prompts_no_answers(model):
    assert _generate(model, []) == []
