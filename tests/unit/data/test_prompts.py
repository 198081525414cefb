"""What an evaluation takes from a row."""

from __future__ import annotations

import pytest
from datasets import Dataset

from kdflow_lab import zoo as zoo_data
from kdflow_lab.data.prompts import prompts, references, with_answer
from kdflow_lab.data.sources import load
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.errors import DataError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
MORE = {"role": "user", "content": "More"}


def test_prompts_are_the_tokens_before_the_trained_answer(zoo, tokenizer):
    rows = zoo_data.dataset("zoo/tasks", rows=50)
    for has_blocks in (True, False):
        if not has_blocks:
            for mark in ("generation", "endgeneration"):
                tokenizer.chat_template = tokenizer.chat_template.replace(f"{{% {mark} %}}", "")
        table, _ = tokenize(rows, tokenizer, max_length=500)
        for place, prompt in enumerate(prompts(rows, tokenizer)):
            ids, mask = table.row(place)
            assert prompt == ids[mask == 0].tolist()


def test_prompts_end_before_the_last_answer_or_at_the_end(zoo):
    header = "<|im_start|>assistant\n"
    chats = [[USER, ANSWER, MORE, ANSWER], [USER, ANSWER, MORE], [USER]]
    rows = Dataset.from_list([{"messages": chat} for chat in chats])
    texts = zoo.batch_decode(prompts(rows, zoo))
    assert [text.count(header) for text in texts] == [2, 1, 1]
    assert all(text.endswith(header) for text in texts)
    # An answer inside a prompt column is context, not what is asked for.
    (alone,) = prompts(Dataset.from_list([{"prompt": [USER, ANSWER, MORE]}]), zoo)
    assert zoo.decode(alone).count(header) == 2
    text = "<|im_start|>user\nHi<|im_end|>\n" + header
    assert zoo.batch_decode(prompts(Dataset.from_list([{"prompt": "Hi"}]), zoo)) == [text]


def test_prompts_without_a_template_are_plain_text(tokenizer):
    tokenizer.chat_template = None
    rows = Dataset.from_list([{"prompt": "Hi", "response": "Ho"}])
    assert prompts(rows, tokenizer) == tokenizer(["Hi"])["input_ids"]
    with pytest.raises(DataError, match="no chat template"):
        prompts(Dataset.from_list([{"messages": [USER]}]), tokenizer)


def test_rows_without_prompt_are_refused(zoo):
    with pytest.raises(DataError, match="'text' have no prompt"):
        prompts(Dataset.from_list([{"text": "x"}]), zoo)
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used:\n  row 1: messages is int"):
        prompts(load([{"messages": [USER]}, {"messages": 3}]), zoo)


def test_references_are_the_answers_or_the_last_answer():
    assert references({"messages": [USER, ANSWER], "answers": ["A", "B"]}) == ["A", "B"]
    assert references({"messages": [USER, ANSWER], "answers": "A"}) == ["A"]
    assert references({"messages": [USER, ANSWER, MORE], "answers": None}) == ["Ho"]
    assert references({"prompt": "Hi", "response": "Ho"}) == ["Ho"]
    assert references({"messages": [USER]}) == []
    assert references({"text": "plain"}) == []


def test_with_answer_replaces_the_last_answer_only():
    row = {"messages": [USER, ANSWER, MORE, ANSWER], "kind": "k", "_source": "x:1"}
    new = {"role": "assistant", "content": "New"}
    assert with_answer(row, "New") == {"messages": [USER, ANSWER, MORE, new], "kind": "k"}
    assert row["messages"][3] == ANSWER
    assert with_answer({"prompt": "Hi", "response": "Ho"}, "New") == {"messages": [USER, new]}
    assert with_answer({"messages": [USER]}, "New") == {"messages": [USER, new]}
    with pytest.raises(DataError, match="no answer"):
        with_answer({"text": "plain"}, "New")
