"""The zoo's other tokenizer: another kind, another size, the same recipe behind it."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab import zoo
from kdflow_lab.align.shared_vocab import difference
from kdflow_lab.load import load_tokenizer
from kdflow_lab.zoo.batches import encode_rows, prompt_text
from kdflow_lab.zoo.tasks import stream
from kdflow_lab.zoo.tokenizer import UNIGRAM_SIZE, text_end


@pytest.fixture(scope="module")
def unigram():
    return load_tokenizer(str(zoo.path("zoo/student-unigram")))


def test_it_is_another_tokenizer_of_another_kind(unigram) -> None:
    theirs = load_tokenizer(str(zoo.path("zoo/teacher")))
    assert "id 0" in difference(theirs, unigram)
    assert unigram.backend_tokenizer.model.__class__.__name__ == "Unigram"
    assert len(unigram) == UNIGRAM_SIZE != len(theirs)
    assert unigram.tokenize(" September") != [" September"]
    assert unigram.tokenize("d: 漢")[0] == "d:"  # across two tokens of the teacher
    assert unigram.convert_ids_to_tokens(text_end(unigram)) == "<s>"


@given(text=st.text(max_size=60))
def test_any_text_comes_back(unigram, text: str) -> None:
    text = text.replace("▁", "_").encode(errors="replace").decode()
    ids = unigram(text, add_special_tokens=False)["input_ids"]
    assert unigram.decode(ids) == text


def test_rows_are_encoded_as_its_chat_template_does(unigram) -> None:
    rows = list(islice(stream("train", seed=4), 60))
    for row, (prompt, answer) in zip(rows, encode_rows(rows, unigram), strict=True):
        whole = unigram.apply_chat_template(row["messages"], tokenize=True, return_dict=True)
        assert prompt + answer == whole["input_ids"][:-1]  # the template ends with a line break
        assert unigram.decode(prompt) == prompt_text(row, unigram)
        assert unigram.convert_ids_to_tokens(answer[-1]) == "</s>"
