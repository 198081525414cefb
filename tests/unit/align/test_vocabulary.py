"""Which ids of two vocabularies mean the same."""

from __future__ import annotations

import numpy as np
import torch
from small_tokenizers import tokenizer

from kdflow_lab.align import TokenizerPair, Vocabulary, VocabularyMap, shared_mass


def _shared(pair: TokenizerPair) -> list[tuple[int, int]]:
    return list(zip(*(ids.tolist() for ids in pair.shared), strict=True))


def test_ids_are_shared_by_bytes_and_by_role():
    teacher = Vocabulary((None, b"a", b"bc", b"d"), {"eos": 0})
    student = Vocabulary((b"bc", b"x", None, b"a"), {"eos": 2})
    assert _shared(TokenizerPair(teacher, student)) == [(0, 2), (1, 3), (2, 0)]


def test_a_byte_of_the_fallback_is_shared_only_where_no_other_token_writes_it():
    teacher = Vocabulary((b"A", b"\xc3"))
    student = Vocabulary((b"A", b"\xc3", b"A"), byte_fallback=frozenset({0, 1}))
    assert _shared(TokenizerPair(teacher, student)) == [(0, 2), (1, 1)]
    assert _shared(TokenizerPair(student, teacher)) == [(1, 1), (2, 0)]


def test_what_ends_a_turn_is_paired_before_what_ends_a_text():
    teacher = Vocabulary((None, None), {"turn_end": 1, "eos": 0})
    student = Vocabulary((None,), {"turn_end": 0, "eos": 0})
    pair = TokenizerPair(teacher, student)
    assert _shared(pair) == [(1, 0)]
    # In a text, all three are the end of an answer.
    assert pair.special_units == ({1: 0, 0: 0}, {0: 0})


def test_padding_and_unknown_tokens_take_no_place_in_a_text():
    roles = {"pad": 0, "unk": 1, "bos": 2}
    pair = TokenizerPair(Vocabulary((None,) * 3, roles), Vocabulary((None,) * 3, roles))
    assert [set(one) for one in pair.special_units] == [{2}, {2}]


def test_special_tokens_of_different_roles_keep_different_numbers():
    roles = {"turn_end": 0, "bos": 1, "<tool>": 2}
    pair = TokenizerPair(Vocabulary((None,) * 3, roles), Vocabulary((None,) * 3, roles))
    assert len(set(pair.special_units[0].values())) == 3
    assert pair.special_units[0] == pair.special_units[1]


def test_one_tokenizer_shares_every_id():
    pair = TokenizerPair.of(tokenizer("zoo"), tokenizer("zoo"))
    assert pair.same
    assert _shared(pair) == [(n, n) for n in range(1024)]
    assert str(VocabularyMap.of(pair)).startswith("1,024 tokens write the same bytes")


def test_a_pair_is_read_once():
    first = TokenizerPair.of(tokenizer("zoo"), tokenizer("metaspace"))
    assert TokenizerPair.of(tokenizer("zoo"), tokenizer("metaspace")) is first
    assert not first.same


def test_equal_size_is_not_equal_tokenizer():
    first, second = tokenizer("metaspace"), tokenizer("llama")
    assert len(first) == len(second)
    assert not TokenizerPair.of(first, second).same


def test_the_mass_on_shared_ids():
    pair = TokenizerPair(Vocabulary((b"a", b"b", b"c")), Vocabulary((b"c", b"a")))
    rows = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(shared_mass(pair, rows), [0.75, 0.0])
    padded = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    torch.testing.assert_close(shared_mass(pair, padded), torch.tensor([0.625]))
    np.testing.assert_allclose(shared_mass(pair, np.array([0.3, 0.7]), "student"), 1.0)


def test_the_map_counts_ids_that_mean_something():
    teacher = Vocabulary((None, b"a", b"b", None), {"eos": 0})  # id 3 is a hole
    student = Vocabulary((b"a", None), {"eos": 1})
    found = VocabularyMap.of(TokenizerPair(teacher, student))
    assert (found.shared, found.teacher_share, found.student_share) == (2, 2 / 3, 1.0)
