"""Whole batches of responses on their token ids."""

from __future__ import annotations

import numpy as np
import pytest
from small_tokenizers import KINDS, lines, tokenizer

from kdflow_lab.align import AlignedIds, TokenizerPair, Vocabulary, align_ids
from kdflow_lab.errors import DataError, ShapeError

TEXTS = [
    "The quick naïve café\n\n 東京 (done).",
    "",
    "x",
    "Ends with emoji 👍🏽",
    *(text for text in lines()[:40] if text),
]


def _pair(teacher: str, student: str) -> TokenizerPair:
    return TokenizerPair.of(tokenizer(teacher), tokenizer(student))


def _ids(kind: str, texts: list[str], *, end: bool = True) -> list[list[int]]:
    made = tokenizer(kind)
    rows = made(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [[*row, made.eos_token_id] if end else row for row in rows]


def _aligned(
    teacher: str, student: str, given: list[str] = TEXTS, texts: list[str] | None = None
) -> AlignedIds:
    pair = _pair(teacher, student)
    return align_ids(pair, _ids(teacher, given), _ids(student, given), texts=texts)


LOSSLESS_PAIRS = [
    ("byte_large", "byte_small"),
    ("tiktoken", "metaspace"),
    ("unigram", "zoo"),
    ("llama", "unigram"),
    ("metaspace", "llama"),
]


@pytest.mark.parametrize(("teacher", "student"), LOSSLESS_PAIRS)
def test_all_is_covered_where_both_sides_write_the_text(teacher: str, student: str):
    found = _aligned(teacher, student)
    assert found.coverage == 1.0
    assert found.equal.all()
    blanks = [one for one in found.unaligned() if "puts before a text" not in one.reason]
    assert blanks == []
    ends = np.cumsum(found.teacher_lengths) - 1, np.cumsum(found.student_lengths) - 1
    for pair in zip(*ends, strict=True):  # the ends of the answers, whatever they are called
        assert list(pair) in found.pairs.tolist()


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
def test_a_batch_is_its_rows_put_together(teacher: str, student: str):
    texts = TEXTS[:8]
    whole = _aligned(teacher, student, texts)
    spans: list[list[int]] = []
    for row, text in enumerate(texts):
        alone = _aligned(teacher, student, [text])
        shift = [int(whole.teacher_lengths[:row].sum())] * 2
        shift += [int(whole.student_lengths[:row].sum())] * 2
        spans += (alone.spans + np.array(shift)).tolist()
        part = whole.student_sample == row
        base = whole.row_start[row]
        np.testing.assert_array_equal(whole.student_start[part] - base, alone.student_start)
        np.testing.assert_array_equal(whole.student_end[part] - base, alone.student_end)
    assert whole.spans.tolist() == spans


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", ["nfkc", "word_piece", "byte_small", "llama"])
def test_every_token_is_in_a_span_or_has_a_reason(teacher: str, student: str):
    found = _aligned(teacher, student)
    reasons = found.unaligned()
    assert all(one.reason for one in reasons)
    for name, column, lengths in (
        ("teacher", 0, found.teacher_lengths),
        ("student", 2, found.student_lengths),
    ):
        first = np.cumsum(lengths) - lengths
        count = np.zeros(int(lengths.sum()), int)
        for span in found.spans.tolist():
            count[span[column] : span[column + 1]] += 1
        for one in reasons:
            if one.side == name:
                count[first[one.row] + one.token] += 1
        assert (count == 1).all()


def test_places_count_bytes_and_the_end_of_the_answer():
    found = _aligned("byte_large", "byte_small", ["naïve", "ab"])
    assert found.row_start.tolist() == [0, len("naïve".encode()) + 1, 6 + 1 + 2 + 1]
    for starts, ends in (
        (found.teacher_start, found.teacher_end),
        (found.student_start, found.student_end),
    ):
        assert starts[0] == 0
        np.testing.assert_array_equal(starts[1:], ends[:-1])
    pairing = found.pairing()
    assert pairing.teacher_labels.tolist() == found.teacher_ids.tolist()
    assert pairing.student_sample.tolist() == found.student_sample.tolist()


def test_a_blank_that_one_side_puts_in_front_takes_no_place():
    found = _aligned("metaspace", "byte_large", ["the end"])
    first = found.pair.teacher.token_bytes[found.teacher_ids[0]]
    assert first is not None and first.startswith(b" t")
    assert (found.teacher_start[0], found.teacher_end[0]) == (0, len(first) - 1)
    # A response that begins with a blank in the text keeps it, on both sides.
    found = _aligned("metaspace", "byte_large", [" the end"])
    assert (found.teacher_start[0], found.teacher_end[0]) == (0, len(first))
    assert found.coverage == 1.0


def test_what_a_normaliser_changes_loses_no_more_than_itself():
    found = _aligned("byte_large", "nfkc", ["one ﬁve and then the rest of it"])
    assert not found.equal.any()
    lost = {one.reason for one in found.unaligned() if one.side == "student"}
    assert all("its tokenizer changes texts" in one for one in lost)
    assert found.coverage > 0.8
    assert found.student_end[-1] == found.teacher_end[-1]  # and the end of the answer still fits


def test_a_text_settles_what_neither_side_wrote():
    text = "SOME Capitals ﬁrst"
    without = _aligned("nfkc", "word_piece", [text])
    given = _aligned("nfkc", "word_piece", [text], texts=[text])
    assert int(given.row_start[-1]) == len(text.encode()) + 1
    assert given.coverage < without.coverage  # both wrote lower case: not what the text has


def test_sampled_ids_need_not_be_the_tokenizers_own_split():
    student = tokenizer("byte_large")
    letters = [student.convert_tokens_to_ids(one) for one in "return"]
    assert student.encode("return", add_special_tokens=False) != letters
    teacher = tokenizer("tiktoken").encode("return", add_special_tokens=False)
    found = align_ids(_pair("tiktoken", "byte_large"), [teacher], [letters])
    assert found.coverage == 1.0
    assert sum(n * theirs for (theirs, _), n in found.span_sizes().items()) == len(teacher)
    assert sum(n * ours for (_, ours), n in found.span_sizes().items()) == len("return")


def test_a_character_that_was_cut_off_loses_only_itself():
    student = tokenizer("byte_small")
    ids = student.encode("all of this, then 東", add_special_tokens=False)[:-1]
    text = student.decode(ids)  # ends with U+FFFD, which the teacher writes in full
    assert text.endswith("\ufffd")
    teacher = tokenizer("byte_large").encode(text, add_special_tokens=False)
    found = align_ids(_pair("byte_large", "byte_small"), [teacher], [ids])
    lost = [one for one in found.unaligned() if one.side == "student"]
    assert {one.token for one in lost} == {len(ids) - 2, len(ids) - 1}
    assert found.student_end[len(ids) - 3] == len("all of this, then ")
    assert all("part of a character" in one.reason or "no tokens" in one.reason for one in lost)


def test_special_tokens_without_a_counterpart_are_named():
    made = tokenizer("byte_large")
    end, start = made.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    student = [*made.encode("ab", add_special_tokens=False), start, end]
    teacher = _ids("metaspace", ["ab"])
    found = align_ids(_pair("metaspace", "byte_large"), teacher, [student])
    assert found.pairs.tolist()[-1] == [len(teacher[0]) - 1, len(student) - 1]  # end to end
    assert [one.reason for one in found.unaligned()] == [
        "special token (turn_start) without a counterpart of the teacher"
    ]


def test_either_end_of_a_text_ends_an_answer():
    """A student whose template ends turns with <|im_end|> may sample <|endoftext|> as well."""
    made = tokenizer("byte_large")
    for name in ("<|im_end|>", "<|endoftext|>"):
        student = [*made.encode("ab", add_special_tokens=False), made.convert_tokens_to_ids(name)]
        found = align_ids(_pair("metaspace", "byte_large"), _ids("metaspace", ["ab"]), [student])
        assert found.coverage == 1.0
        assert found.unaligned() == []


def test_ids_of_a_padded_head_write_nothing_and_this_is_said():
    pair = _pair("byte_large", "byte_small")
    found = align_ids(
        pair, [[1500 + 7, *_ids("byte_large", ["ab"])[0]]], _ids("byte_small", ["ab"])
    )
    assert found.coverage == 1.0
    assert [one.reason for one in found.unaligned()] == [
        "id 1507 is past the teacher's vocabulary of 1500"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_pairs_one_to_one_whatever_it_writes(kind: str):
    found = _aligned(kind, kind)
    count = len(found.student_ids)
    assert found.pairs.tolist() == [[n, n] for n in range(count)]
    assert (found.coverage, found.one_to_one) == (1.0, 1.0)
    assert found.unaligned() == []


def test_nothing_to_align_is_covered():
    pair = _pair("byte_large", "byte_small")
    for rows in ([], [[]], [[], []]):
        found = align_ids(pair, rows, rows)
        assert (found.coverage, found.one_to_one) == (1.0, 1.0)
        assert found.spans.shape == (0, 4)
        assert len(found.row_start) == len(rows) + 1


def test_one_side_that_wrote_nothing_covers_nothing():
    found = align_ids(_pair("byte_large", "byte_small"), [[]], _ids("byte_small", ["ab"]))
    assert found.coverage == 0.0
    assert {one.side for one in found.unaligned()} == {"student"}


def test_span_sizes_count_the_spans():
    vocabulary = Vocabulary((b"a", b"b", b"ab"))
    found = align_ids(TokenizerPair(vocabulary, vocabulary), [[2, 0, 1]], [[0, 1, 0, 1]])
    assert found.span_sizes() == {(1, 2): 1, (1, 1): 2}
    assert found.one_to_one == 0.5


def test_different_numbers_of_rows_are_refused():
    pair = _pair("byte_large", "byte_small")
    with pytest.raises(ShapeError, match="2 responses in the teacher's ids, 1 in the student's"):
        align_ids(pair, [[1], [2]], [[1]])
    with pytest.raises(ShapeError, match="3 texts"):
        align_ids(pair, [[1]], [[1]], texts=["a", "b", "c"])


def test_ids_that_are_none_are_refused():
    pair = _pair("byte_large", "byte_small")
    with pytest.raises(DataError, match="The student's ids hold -100"):
        align_ids(pair, [[1]], [[-100, 1]])
    with pytest.raises(DataError, match=r"Row 1 of the teacher's ids has shape \[1, 2\]"):
        align_ids(pair, [[1], [[1, 2]]], [[1], [1]])
    with pytest.raises(DataError, match="float64"):
        align_ids(pair, [[1.5]], [[1]])
