"""Which ids two tokenizers share, and when they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdflow_lab.align.shared_vocab import PROBES, shared_vocabulary
from kdflow_lab.errors import ModelError

LETTERS = sorted({*"abcdefghijklmnopqrstuvwxyz", *"".join(PROBES)})
MERGES = [("a", "n"), ("n", "s"), ("e", "r")]


def _tokenizer(
    *, merges: list[tuple[str, str]] | None = None, swap: tuple[str, str] | None = None,
    added: tuple[str, ...] = ("<|end|>",),
) -> Any:  # fmt: skip
    """A BPE over letters; `swap` exchanges the ids of two tokens, `added` tokens come last."""
    vocab = {token: i for i, token in enumerate([*LETTERS, "an", "ns", "er"])}
    if swap:
        a, b = swap
        vocab[a], vocab[b] = vocab[b], vocab[a]
    tokenizer = Tokenizer(models.BPE(vocab, MERGES if merges is None else merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SIZE = len(LETTERS) + 4


def _shared(teacher: Any, student: Any, teacher_rows: int = SIZE, student_rows: int = SIZE) -> Any:
    return shared_vocabulary(teacher, student, teacher_rows=teacher_rows, student_rows=student_rows)


def test_equal_tokenizers_and_heads_share_everything_without_a_word():
    shared = _shared(_tokenizer(), _tokenizer())
    assert (shared.size, shared.note) == (SIZE, "")


def test_padded_heads_are_cut_to_the_ids_that_exist_and_this_is_said():
    """Qwen2.5's 152,064 and 151,936 rows for 151,665 tokens, in small."""
    shared = _shared(_tokenizer(), _tokenizer(), teacher_rows=1128, student_rows=1000)
    assert shared.size == SIZE
    assert shared.note == (
        f"Heads of 1,128 (teacher) and 1,000 (student) rows are cut to the {SIZE} ids that both "
        "tokenizers define."
    )


def test_equally_padded_heads_are_cut_too():
    shared = _shared(_tokenizer(), _tokenizer(), teacher_rows=1000, student_rows=1000)
    assert shared.size == SIZE
    assert "1,000" in shared.note


def test_a_head_narrower_than_the_tokenizer_bounds_the_shared_ids():
    shared = _shared(_tokenizer(), _tokenizer(), student_rows=SIZE - 1)
    assert shared.size == SIZE - 1
    assert shared.note


def test_more_added_tokens_on_one_side_are_cut():
    teacher = _tokenizer(added=("<|end|>", "<|tool|>"))
    shared = _shared(teacher, _tokenizer(), teacher_rows=SIZE + 1)
    assert shared.size == SIZE
    assert f"cut to the {SIZE} ids" in shared.note


def test_other_ids_are_refused_with_the_first_difference():
    first = LETTERS.index("c")
    with pytest.raises(ModelError, match="different tokenizers") as caught:
        _shared(_tokenizer(), _tokenizer(swap=("c", "d")))
    assert f"id {first} is 'c' for the teacher and 'd' for the student" in str(caught.value)


def test_other_added_tokens_at_the_same_id_are_refused():
    with pytest.raises(ModelError, match=r"'<\|end\|>' for the teacher and '<\|stop\|>'"):
        _shared(_tokenizer(), _tokenizer(added=("<|stop|>",)))


def test_the_same_ids_with_other_merges_are_refused_with_the_text_that_splits_differently():
    other = _tokenizer(merges=[MERGES[1], MERGES[0], MERGES[2]])  # "answer" -> a ns, not an s
    assert other.get_vocab() == _tokenizer().get_vocab()
    with pytest.raises(ModelError, match=r"split 'The answer is 42\.' differently") as caught:
        _shared(_tokenizer(), other)
    assert "'an', 's', 'w', 'er'" in str(caught.value)
    assert "'a', 'ns', 'w', 'er'" in str(caught.value)


def test_the_error_says_what_to_do():
    with pytest.raises(ModelError, match="or a student with the teacher's tokenizer"):
        _shared(_tokenizer(), _tokenizer(swap=("a", "b")))
