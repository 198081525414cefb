"""The zoo's tokenizer: what is one token, and that text and chats survive it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdflow_lab.zoo import words
from kdflow_lab.zoo.tokenizer import END, PAD, START, TEXT_END, VOCAB_SIZE

SPECIAL = (PAD, TEXT_END, START, END)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_is_full_and_dense(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))


def test_letters_and_digits_are_tokens_of_their_own(tokenizer):
    for letter in words.LETTERS:
        assert len(_ids(tokenizer, letter)) == 1
        assert len(_ids(tokenizer, f" {letter}")) == 1
    for digits in ("7", "42", "2013", "90210"):
        assert tokenizer.convert_ids_to_tokens(_ids(tokenizer, digits)) == list(digits)


@pytest.mark.parametrize("group", ["NAMES", "CITIES", "THINGS", "ORDINALS"])
def test_the_tasks_words_are_one_token_with_their_space(tokenizer, group):
    """A tiny model copies single tokens long before it copies spelled-out words."""
    long = [word for word in getattr(words, group) if len(_ids(tokenizer, f" {word}")) != 1]
    assert not long


def test_special_tokens_are_distinct_and_whole(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL]
    assert len(set(ids)) == len(SPECIAL)
    assert [_ids(tokenizer, token) for token in SPECIAL] == [[i] for i in ids]
    assert tokenizer.eos_token == END
    assert tokenizer.pad_token == PAD  # never the end: a masked padding would mask it, too


def test_training_again_gives_the_same_tokenizer(tokenizer):
    from kdflow_lab.zoo.tokenizer import train_tokenizer

    again = train_tokenizer(task_rows=500)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    if not any(token in text for token in SPECIAL):
        ids = _ids(tokenizer, text)
        assert all(0 <= i < VOCAB_SIZE for i in ids)
        assert tokenizer.decode(ids) == text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_the_mask_covers_the_answers_and_their_ends_only(tokenizer, turns):
    if any("<|" in turn for turn in turns):
        return
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)
    ]
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masked, expected = [], []
    for token_id, inside in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        if inside:
            masked.append(token_id)
    for turn in turns[1::2]:
        expected += _ids(tokenizer, turn + END)
    assert masked == expected


def test_the_template_is_chatml(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_saving_keeps_tokens_and_template(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Sort the letters: k b x — naïve 2013"
    assert _ids(loaded, text) == _ids(tokenizer, text)
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token, loaded.pad_token) == (END, PAD)
    assert loaded.decode(_ids(loaded, " a , b")) == " a , b"
