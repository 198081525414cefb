"""Scoring, on a real small model that has learnt six rows by heart."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from kdflow_lab.zoo.batches import encode_rows, pad_batch
from kdflow_lab.zoo.models import new_model
from kdflow_lab.zoo.scoring import accuracy, answer, table
from kdflow_lab.zoo.tasks import stream
from kdflow_lab.zoo.train import answer_loss


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two rows of each of three kinds with one right answer."""
    kinds = ("add", "reverse", "record")
    return [row for kind in kinds for row in islice(stream("train", kinds=[kind]), 2)]


@pytest.fixture(scope="module")
def model(tokenizer, rows) -> Qwen3ForCausalLM:
    """Trained on the rows as the recipe does: with a misplaced label it could not answer."""
    model = new_model("student", tokenizer)
    batch = pad_batch(encode_rows(rows, tokenizer), tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        answer_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_answers_come_in_the_order_of_the_rows_for_any_batch(model, tokenizer, rows):
    expected = [row["answers"][0] for row in rows]
    assert answer(model, tokenizer, rows) == expected
    assert answer(model, tokenizer, rows, batch_rows=4) == expected
    assert answer(model, tokenizer, rows[::-1], batch_rows=1) == expected[::-1]


def test_accuracy_counts_right_answers_by_kind(model, tokenizer, rows):
    assert accuracy(model, tokenizer, rows) == {"all": 1, "add": 1, "reverse": 1, "record": 1}
    one_wrong = [rows[0] | {"answers": ["Something else."]}, *rows[1:]]
    scores = accuracy(model, tokenizer, one_wrong)
    assert scores == pytest.approx({"all": 5 / 6, "add": 1 / 2, "reverse": 1, "record": 1})


def test_any_of_several_right_answers_counts(model, tokenizer, rows):
    soft = [row | {"answers": ["Another.", row["answers"][0]]} for row in rows]
    assert accuracy(model, tokenizer, soft)["all"] == 1.0


def test_the_reference_answer_is_not_read(model, tokenizer, rows):
    """Only the question goes in: else every model would be right."""
    hidden = [row | {"messages": [row["messages"][0]]} for row in rows]
    assert answer(model, tokenizer, hidden) == answer(model, tokenizer, rows)


def test_sampling_draws_and_greedy_does_not(tokenizer, rows):
    untrained = new_model("student", tokenizer).eval()
    first, second = (
        answer(untrained, tokenizer, rows, sampling_temperature=1.5, max_new_tokens=8)
        for _ in range(2)
    )
    assert first != second
    greedy = [answer(untrained, tokenizer, rows, max_new_tokens=8) for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_a_model_in_training_is_in_training_afterwards(model, tokenizer, rows):
    model.train()
    answer(model, tokenizer, rows[:1], max_new_tokens=2)
    assert model.training
    model.eval()
    answer(model, tokenizer, rows[:1], max_new_tokens=2)
    assert not model.training


def test_the_table_is_one_line():
    assert table({"all": 0.5, "sort": 1.0, "add": 0.125}) == "all 50.0%  sort 100.0%  add 12.5%"
