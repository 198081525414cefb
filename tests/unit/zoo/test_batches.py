"""Rows and prose as tensors: which token predicts which."""

from __future__ import annotations

from itertools import islice

import torch

from kdflow_lab.zoo import prose
from kdflow_lab.zoo.batches import (
    IGNORE_INDEX,
    chat_batches,
    encode_rows,
    pad_batch,
    prompt_text,
    prose_batches,
)
from kdflow_lab.zoo.tasks import stream
from kdflow_lab.zoo.tokenizer import END


def _rows(count: int, seed: int = 0) -> list[dict]:
    return list(islice(stream("train", seed=seed), count))


def test_rows_are_encoded_as_the_chat_template_does(tokenizer):
    rows = [*_rows(100), *islice(prose.chat("train"), 100)]
    for row, (prompt, answer) in zip(rows, encode_rows(rows, tokenizer), strict=True):
        asked = tokenizer.apply_chat_template(
            row["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)
        assert prompt == asked
        assert prompt + answer == whole["input_ids"][:-1]  # the template ends with a line break
        assert answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(prompt) == prompt_text(row, tokenizer)
        assert tokenizer.decode(answer) == row["messages"][1]["content"] + END


def test_labels_are_the_next_tokens_of_the_answers_only():
    """By hand: prompt 1 2 3 with answer 4 5, and prompt 6 with answer 7; padding is 0."""
    batch = pad_batch([([1, 2, 3], [4, 5]), ([6], [7])], pad_id=0)
    x = IGNORE_INDEX
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [6, 0, 0, 0]]
    assert batch.labels.tolist() == [[x, x, 4, 5], [7, x, x, x]]


def test_padding_does_not_touch_the_loss(tokenizer):
    """Alone or beside a longer row, a row's logits and so its loss are the same."""
    from kdflow_lab.zoo.models import new_model
    from kdflow_lab.zoo.train import answer_loss

    model = new_model("student", tokenizer).eval()
    pairs = sorted(encode_rows(_rows(20), tokenizer), key=lambda pair: len(pair[0]) + len(pair[1]))
    short, long, pad_id = pairs[0], pairs[-1], tokenizer.pad_token_id
    with torch.no_grad():
        alone = [answer_loss(model, pad_batch([pair], pad_id)) for pair in (short, long)]
        both = answer_loss(model, pad_batch([short, long], pad_id))
    tokens = [len(short[1]), len(long[1])]
    mean = (alone[0] * tokens[0] + alone[1] * tokens[1]) / sum(tokens)
    torch.testing.assert_close(both, mean)


def test_every_row_comes_exactly_once_in_batches_of_like_length(tokenizer):
    rows = _rows(150)
    batches = list(chat_batches(iter(rows), tokenizer, batch_rows=8, pool_batches=10))
    assert sorted(len(batch.input_ids) for batch in batches)[0] >= 6
    seen, lengths = [], []
    for batch in batches:
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            kept = [i for i in ids if i != tokenizer.pad_token_id]
            seen.append(tuple([*kept, tokenizer.eos_token_id]))
            assert labels[len(kept) - 1] == tokenizer.eos_token_id
        lengths.append({len([i for i in ids if i != 0]) for ids in batch.input_ids.tolist()})
    assert sorted(seen) == sorted(tuple(p + a) for p, a in encode_rows(rows, tokenizer))
    assert sum(max(length) - min(length) for length in lengths) / len(lengths) < 4


def test_the_seed_orders_the_batches(tokenizer):
    def first(seed: int) -> torch.Tensor:
        batches = chat_batches(iter(_rows(80)), tokenizer, batch_rows=4, seed=seed, pool_batches=20)
        return next(batches).input_ids

    assert torch.equal(first(1), first(1))
    assert not all(
        first(seed).shape == first(1).shape and torch.equal(first(seed), first(1))
        for seed in (2, 3, 4)
    )


def test_prose_is_cut_anywhere_and_predicts_its_next_token(tokenizer):
    texts = [text for _, text in prose.texts("test")][:20]
    batch = next(prose_batches(texts, tokenizer, rows=6, length=32, seed=1))
    assert batch.input_ids.shape == batch.labels.shape == (6, 32)
    assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
    whole: list[int] = []
    for text in texts:
        whole += [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    joined = " ".join(map(str, whole))
    for row in batch.input_ids.tolist():
        assert " ".join(map(str, row)) in joined
    again = next(prose_batches(texts, tokenizer, rows=6, length=32, seed=1))
    assert torch.equal(batch.input_ids, again.input_ids)
