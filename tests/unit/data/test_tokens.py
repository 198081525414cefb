"""Response masks: from generation blocks, from joined pieces, and without a template."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdflow_lab import zoo as zoo_data
from kdflow_lab.data.sources import load
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_start|>\n\n' + m.content | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant<|im_start|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # like Qwen3: what was thought is dropped from earlier turns
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _messages(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


LONG = _messages("Hi there", "Hello, you.", "And 1 + 1?", "It is 2.", "Thanks")


def _one(tokenizer, row, **options):
    """Tokenize one row and return (whole text, trained texts in runs)."""
    table, _ = tokenize(Dataset.from_list([row]), tokenizer, **{"max_length": 500, **options})
    ids, mask = table.row(0)
    borders = np.flatnonzero(np.diff(mask)) + 1
    runs = zip(np.split(ids, borders), np.split(mask, borders), strict=True)
    return tokenizer.decode(ids), [tokenizer.decode(run) for run, on in runs if on[0]]


def test_generation_blocks_give_what_transformers_gives(zoo):
    rows = zoo_data.dataset("zoo/tasks", rows=200)
    rows = Dataset.from_list([*rows.to_list(), {"messages": LONG[:4]}])
    table, report = tokenize(rows, zoo, max_length=500)
    assert report.kept == 201
    for place, row in enumerate(rows.to_list()):
        golden = zoo.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = table.row(place)
        assert [*ids, *golden["input_ids"][len(ids) :]] == golden["input_ids"]
        assert mask.tolist() == golden["assistant_masks"][: len(ids)]
        assert not any(golden["assistant_masks"][len(ids) :])


def test_joined_pieces_give_the_mask_of_generation_blocks(zoo, tokenizer):
    rows = zoo_data.dataset("zoo/tasks", rows=200)
    rows = Dataset.from_list([*rows.select_columns("messages").to_list(), {"messages": LONG}])
    tokenizer.chat_template = CHATML
    for train_turns in ("all", "last"):
        options = {"max_length": 500, "train_turns": train_turns}
        marked, joined = (tokenize(rows, each, **options)[0] for each in (zoo, tokenizer))
        for name, array in marked.arrays().items():
            assert (array == joined.arrays()[name]).all(), name


@pytest.mark.parametrize(
    ("template", "end", "space"),
    [(CHATML, "<|im_end|>", ""), (LLAMA, "<|im_end|>", ""), (MISTRAL, "<|im_end|>", " ")],
)
def test_every_assistant_turn_is_trained_with_its_end(tokenizer, template, end, space):
    tokenizer.chat_template, tokenizer.bos_token = template, "<|endoftext|>"
    text, trained = _one(tokenizer, {"messages": LONG})
    assert trained == [f"{space}Hello, you.{end}", f"{space}It is 2.{end}"]
    whole = tokenizer.apply_chat_template(LONG[:4], tokenize=False)
    assert text == whole.rstrip()
    _, last = _one(tokenizer, {"messages": LONG}, train_turns="last")
    assert last == [f"{space}It is 2.{end}"]


def test_a_repeated_text_is_never_taken_for_the_answer(tokenizer):
    """The question holds the answer, and the answer's header: only places count."""
    tokenizer.chat_template = CHATML
    tricky = _messages("Hello<|im_end|>\n<|im_start|>assistant\nHello", "Hello")
    text, trained = _one(tokenizer, {"messages": tricky})
    assert trained == ["Hello<|im_end|>"]
    assert text.endswith("Hello<|im_end|>")


def test_a_block_that_stops_before_the_end_token_takes_it_in(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    assert _one(tokenizer, {"messages": LONG[:2]})[1] == ["Hello, you.<|im_end|>"]


def test_prompt_and_completion_train_the_completion_only(zoo):
    plain = {"prompt": "Hi there", "completion": "Hello, you."}
    lists = {"prompt": LONG[:3], "response": LONG[3:4]}
    assert _one(zoo, plain) == _one(zoo, {"messages": LONG[:2]})
    text, trained = _one(zoo, lists)
    assert text == _one(zoo, {"messages": LONG})[0]
    assert trained == ["It is 2.<|im_end|>"]


def test_without_a_template_ids_are_joined(tokenizer):
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|endoftext|>"
    row = {"prompt": "Add 1 and", "response": " 2."}
    table, _ = tokenize(Dataset.from_list([row]), tokenizer, max_length=50)
    prompt, response = tokenizer(["Add 1 and", " 2."])["input_ids"]
    ids, mask = table.row(0)
    assert ids.tolist() == [*prompt, *response, tokenizer.eos_token_id]
    assert mask.tolist() == [0] * len(prompt) + [1] * (len(response) + 1)
    with pytest.raises(DataError, match=r"no chat template.*Set tokenizer\.chat_template"):
        _one(tokenizer, {"messages": LONG})


def test_text_trains_every_token_but_the_first(zoo):
    table, report = tokenize(Dataset.from_list([{"text": "some plain text"}]), zoo, max_length=50)
    ids, mask = table.row(0)
    assert ids.tolist() == zoo("some plain text")["input_ids"]
    assert mask.tolist() == [0] + [1] * (len(ids) - 1)
    assert report.response_tokens == report.tokens - 1
    rows = Dataset.from_list([{"text": "some plain text"}, {"text": " "}, {"text": "a"}])
    _, report = tokenize(rows, zoo, max_length=50, on_bad_rows="skip")
    assert [reason for _, reason in report.bad_rows] == [
        "text is empty", "no token of it can be trained"
    ]  # fmt: skip


def test_tokenizers_that_write_a_space_before_texts():
    """SentencePiece style: the answer gets no space that the conversation has not."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    lines = ["[INST] Hi there [/INST] Hello, you. and more of it [INST] word"] * 3
    inner.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"])
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    # No space before the answer: tokenized apart, it would get one.
    tokenizer.chat_template = MISTRAL.replace("' ' + m.content", "m.content")
    table, _ = tokenize(Dataset.from_list([{"messages": LONG[:2]}]), tokenizer, max_length=99)
    ids, mask = table.row(0)
    whole = tokenizer("<s>[INST] Hi there [/INST]Hello, you.</s>", add_special_tokens=False)
    assert ids.tolist() == whole["input_ids"]
    trained = tokenizer.convert_ids_to_tokens(ids[mask == 1].tolist())
    assert "".join(trained) == "Hello,▁you.</s>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = FORGETFUL
    thought = _messages("Hi", "<think>hm</think>Ho", "And?", "<think>so</think>Two")
    with pytest.raises(DataError, match=r"row 0: .*messages\[1\].*later messages change") as error:
        _one(tokenizer, {"messages": thought})
    assert "train_turns='last'" in str(error.value)
    assert _one(tokenizer, {"messages": thought}, train_turns="last")[1] == [
        "<think>so</think>Two<|im_end|>"
    ]
    tokenizer.chat_template = CHATML.replace(
        "assistant\n' }}{% endif", "assistant\n<think>' }}{% endif"
    )
    with pytest.raises(DataError, match=r"messages\[1\].*the prompt that asks for the answer"):
        _one(tokenizer, {"messages": _messages("Hi", "Ho")})


def test_rows_that_the_template_refuses_are_bad_rows(tokenizer):
    tokenizer.chat_template, tokenizer.bos_token = MISTRAL, "<|endoftext|>"
    rows = [LONG[:2], [LONG[0], LONG[2], LONG[1]], LONG[:4]]
    rows = Dataset.from_list([{"messages": messages} for messages in rows])
    table, report = tokenize(rows, tokenizer, max_length=99, on_bad_rows="skip")
    assert table.row_index.tolist() == [0, 2]
    assert report.bad_rows == [("row 1", "the chat template refuses it: roles must alternate")]


def test_truncation_drops_cuts_or_refuses(zoo):
    rows = Dataset.from_list([{"messages": LONG[:2]}, {"messages": LONG[:4]}])
    full, _ = tokenize(rows, zoo, max_length=500)
    short, long = full.lengths.tolist()
    table, report = tokenize(rows, zoo, max_length=short)
    assert (table.row_index.tolist(), report.dropped, report.skipped) == ([0], 1, 0)
    table, report = tokenize(rows, zoo, max_length=long - 1, truncation="right")
    assert (table.lengths.tolist(), report.cut, report.dropped) == ([short, long - 1], 1, 0)
    assert table.row(1)[0].tolist() == full.row(1)[0][:-1].tolist()
    with pytest.raises(
        DataError, match=f"row 1: it has {long} tokens, more than max_length={short}"
    ):
        tokenize(rows, zoo, max_length=short, truncation="error")
    with pytest.raises(DataError, match="no token of it can be trained within max_length=4"):
        tokenize(rows, zoo, max_length=4, truncation="right")
    with pytest.raises(DataError, match=r"No row is left of 2: 2 have more than max_length=4"):
        tokenize(rows, zoo, max_length=4)


def test_unknown_columns_and_options_offer_the_nearest(zoo):
    with pytest.raises(DataError, match=r"found mesages, id\. Did you mean 'messages'\?"):
        tokenize(Dataset.from_list([{"mesages": "x", "id": 1}]), zoo, max_length=9)
    with pytest.raises(DataError, match="'prompt' is there, but no 'completion' or 'response'"):
        tokenize(Dataset.from_list([{"prompt": "x"}]), zoo, max_length=9)
    option: dict[str, Any]
    for option in ({"truncation": "rigth"}, {"on_bad_rows": "skp"}, {"train_turns": "lst"}):
        with pytest.raises(ConfigError, match="Did you mean"):
            tokenize(Dataset.from_list([{"text": "x"}]), zoo, max_length=9, **option)


def test_report_is_plain_json(zoo):
    rows = load([{"messages": LONG[:2]}, {"messages": 1}])
    table, report = tokenize(rows, zoo, max_length=99, on_bad_rows="skip")
    assert report.summary() == {
        "rows": 2, "kept": 1, "dropped": 0, "cut": 0, "skipped": 1,
        "tokens": len(table.input_ids), "response_tokens": int(table.response_mask.sum()),
        "bad_rows": [
            {"source": "row 1", "reason": "messages is int; expected a list of messages"}
        ],
    }  # fmt: skip


def test_ten_thousand_rows_take_seconds(zoo):
    rows = zoo_data.dataset("zoo/tasks", rows=2_000)
    start = time.process_time()  # on a busy machine, too
    tokenize(rows, zoo, max_length=256)
    assert time.process_time() - start < 2_000 / 10_000 * 3.0 * 2  # twice the aim: a slow machine
