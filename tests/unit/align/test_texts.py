"""One text, to be looked at."""

from __future__ import annotations

import pytest
from small_tokenizers import KINDS, tokenizer

import kdflow_lab as kd
from kdflow_lab.align import Alignment, align, align_response, rows
from kdflow_lab.errors import DataError

TEXT = "The naïve CAFÉ\n\n 東京 ﬁne, and so on."


def _align(teacher: str, student: str, text: str = TEXT, **options: bool) -> Alignment:
    return align(tokenizer(teacher), tokenizer(student), text, **options)


def test_the_public_name():
    found = kd.align.align(tokenizer("zoo"), tokenizer("metaspace"), "hello")
    assert isinstance(found, kd.align.Alignment)


def test_spans_pairs_and_coverage_of_a_text_that_both_write():
    found = _align("byte_large", "metaspace")
    assert found.coverage == 1.0
    assert found.unaligned == []
    assert found.text == TEXT
    assert found.data == TEXT.encode()
    singles = [(a, c) for a, b, c, d in found.spans if (b - a, d - c) == (1, 1)]
    assert found.pairs == singles
    assert found.one_to_one == len(singles) / len(found.student.ids)
    assert "".join(found.teacher.tokens).startswith("TheĠna")
    assert "".join(found.student.tokens).startswith("▁The▁na")
    assert found.student.byte_spans[0][0] == 0
    assert ("eos", 0, 2) in found.special


def test_a_changed_accent_loses_itself_only_and_the_reason_is_given():
    found = _align("byte_large", "nfkc", "one café e\u0301t two")
    lost = found.unaligned
    assert {one.text.strip() for one in lost} <= {
        "e\u0301",
        "e\u0301t",
    }  # as the merges will have it
    student = next(one for one in lost if one.side == "student")
    assert student.reason.startswith("the student writes ")
    assert "é" in student.reason
    assert "its tokenizer changes texts" in student.reason
    assert found.span_bytes[-1][1] == len(found.data)


def test_unknown_words_are_reported_and_the_rest_still_aligns():
    found = _align("tiktoken", "word_level", "return zzqx the")
    lost = [one for one in found.unaligned if one.side == "student"]
    assert any("unknown to the student's tokenizer" in one.reason for one in lost)
    words = [found.data[a:b] for a, b in found.span_bytes]
    assert b"return" in words


def test_blanks_that_a_tokenizer_leaves_out_are_reported():
    found = _align("byte_small", "word_piece", "a  \n b")
    left = [one for one in found.unaligned if one.side == "student"]
    assert [(one.start, one.end) for one in left] == [(1, 1)]
    assert left[0].reason == "the student's tokenizer leaves these bytes out"


def test_word_pieces_take_the_blank_in_front_of_them_where_the_text_has_one():
    found = _align("byte_large", "word_piece", "(a, the)")
    assert found.coverage == 1.0
    assert found.unaligned == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_is_one_to_one_and_covers_all(kind: str):
    found = _align(kind, kind)
    assert found.pairs == [(n, n) for n in range(len(found.teacher.ids))]
    assert (found.coverage, found.one_to_one) == (1.0, 1.0)
    assert found.unaligned == []


def test_a_special_token_in_the_text_is_no_text_to_the_side_that_knows_it():
    found = _align("byte_large", "metaspace", "a</s>b")
    assert found.data == b"a</s>b"
    (student,) = [one for one in found.unaligned if one.side == "student"]
    assert student.text == "</s>"
    assert student.reason == "special token '</s>', not one to the teacher"
    assert [found.data[a:b] for a, b in found.span_bytes] == [b"a", b"b"]
    again = _align("byte_large", "llama", "a</s>b")  # writes a blank behind it as well
    assert again.spans == found.spans
    same = _align("byte_large", "zoo", "a<|im_end|>b")
    assert same.coverage == 1.0
    assert (1, 2, 1, 2) in same.spans


def test_what_the_tokenizers_add_themselves_is_paired_by_role():
    found = _align("metaspace", "word_piece", "the", add_special_tokens=True)
    assert found.student.tokens == ("[CLS]", "the", "[SEP]")
    assert found.spans[0] == (0, 1, 0, 1)
    assert found.span_bytes[0] == (0, 0)
    assert found.coverage == 1.0
    (end,) = found.unaligned
    assert (end.side, end.start, end.text) == ("student", 2, "")
    assert end.reason == "special token; the teacher writes no such one here"


def test_a_response_is_aligned_on_its_ids():
    teacher, student = tokenizer("byte_large"), tokenizer("metaspace")
    ids = [
        [*one.encode("naïve", add_special_tokens=False), one.eos_token_id]
        for one in (teacher, student)
    ]
    found = align_response(teacher, student, *ids)
    assert found.text == "naïve"
    assert found.pairs[-1] == (len(ids[0]) - 1, len(ids[1]) - 1)
    assert found.span_bytes[-1] == (6, 6)
    assert found.unaligned == []
    assert align_response(teacher, teacher, ids[0], ids[0]).one_to_one == 1.0


def test_an_empty_text_is_covered():
    found = _align("byte_large", "byte_small", "")
    assert (found.spans, found.coverage, found.one_to_one) == ([], 1.0, 1.0)
    assert "0 bytes" in repr(found)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match="half of a surrogate pair"):
        _align("byte_large", "byte_small", "a\ud800")


def test_the_table_shows_every_token_once_and_the_reasons():
    found = _align("byte_large", "nfkc")
    listed = list(rows(found))
    assert [n for row in listed for n in row.teacher] == list(range(len(found.teacher.ids)))
    assert [n for row in listed for n in row.student] == list(range(len(found.student.ids)))
    assert [row.byte_start for row in listed[1:]] == [row.byte_end for row in listed[:-1]]
    assert {row.reason == "" for row in listed} == {True, False}
    text = repr(found)
    assert text.startswith(f"{len(found.data)} bytes: {len(found.teacher.ids)} teacher and ")
    assert "its tokenizer changes texts" in text
    long = repr(_align("byte_small", "byte_large", "word " * 200))
    assert "more" in long.splitlines()[-1]
