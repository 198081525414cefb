"""The alignment of any text between any two kinds of tokenizers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, LOSSLESS, tokenizer

from kdflow_lab.align import Alignment, TokenizerPair, Vocabulary, align, align_ids, align_response
from kdflow_lab.align.pairing import spans

PAIRS = list(itertools.combinations(KINDS, 2))
SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIKELY = "aaee  \n\t thereturnself.(éßİﬁ½東京🚀👍🏽\u0301\u00a0▁Ġ<|>x0A\0\r'ABC"
any_text = st.text(st.characters(codec="utf-8"), max_size=60)
likely_text = st.lists(
    st.one_of(
        st.text(LIKELY, max_size=12),
        st.sampled_from(
            [" return", " self", "the ", "def f(x):\n", "<|im_end|>", "</s>", "<0x41>"]
        ),
    ),
    max_size=8,
).map("".join)
texts = st.one_of(any_text, likely_text)


def _written(found: Alignment, side: str, tokens: range) -> bytes:
    ids = getattr(found, side).ids
    return b"".join(getattr(found.pair, side).token_bytes[ids[n]] or b"" for n in tokens)


def _faithful(kind: str, text: str) -> bool:
    """Whether the tokens of a text write it, but for a blank in front, without special tokens."""
    vocabulary = TokenizerPair.of(tokenizer(kind), tokenizer(kind)).teacher
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    got = [vocabulary.token_bytes[one] for one in ids]
    wanted = text.encode()
    return None not in got and b"".join(one or b"" for one in got) in (wanted, b" " + wanted)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@SETTINGS
@given(text=texts)
@example(text="e\u0301 ﬁ İ — naïve café and the rest of the text")
@example(text="   two  \n blanks ")
def test_any_text(pair: tuple[str, str], text: str):
    teacher, student = (tokenizer(kind) for kind in pair)
    found = align(teacher, student, text)
    _covers_each_byte_and_token_once(found, text)
    _spans_write_their_bytes(found)
    _mirrored(found, align(student, teacher, text))
    assert all(one.reason for one in found.unaligned)
    if all(_faithful(kind, text) for kind in pair):
        assert found.coverage == 1.0
        for side in ("teacher", "student"):
            column = 0 if side == "teacher" else 2
            whole = b"".join(
                _written(found, side, range(span[column], span[column + 1])) for span in found.spans
            )
            assert whole.removeprefix(b" ") == text.encode().removeprefix(b" ")
    _ids_agree(found, all(_faithful(kind, text) for kind in pair))


def _covers_each_byte_and_token_once(found: Alignment, text: str) -> None:
    assert found.data == text.encode()
    for name, column in (("teacher", 0), ("student", 2)):
        lost = [one for one in found.unaligned if one.side == name]
        by_byte = np.zeros(len(found.data), int)
        for start, end in [*found.span_bytes, *((one.byte_start, one.byte_end) for one in lost)]:
            by_byte[start:end] += 1
        assert (by_byte == 1).all()
        by_token = np.zeros(len(getattr(found, name).ids), int)
        ranges = [(span[column], span[column + 1]) for span in found.spans]
        for start, end in [*ranges, *((one.start, one.end) for one in lost)]:
            by_token[start:end] += 1
        assert (by_token == 1).all()


def _spans_write_their_bytes(found: Alignment) -> None:
    """On both sides; but for special tokens, and a blank that a tokenizer makes up behind them."""
    for (a, b, c, d), (start, end) in zip(found.spans, found.span_bytes, strict=True):
        part = found.data[start:end]
        for side, tokens in (("teacher", range(a, b)), ("student", range(c, d))):
            ids = getattr(found, side).ids
            vocabulary: Vocabulary = getattr(found.pair, side)
            if any(vocabulary.token_bytes[ids[n]] is None for n in tokens):
                continue
            got = _written(found, side, tokens)
            opens = not start or vocabulary.token_bytes[ids[tokens[0] - 1]] is None
            made_up = vocabulary.blank == "any" or (vocabulary.blank == "first" and opens)
            assert got == part or (made_up and got.replace(b" ", b"") == part.replace(b" ", b""))


def _mirrored(found: Alignment, mirror: Alignment) -> None:
    assert found.spans == [(a, b, c, d) for c, d, a, b in mirror.spans]
    assert found.span_bytes == mirror.span_bytes
    assert found.coverage == mirror.coverage
    turned = {"teacher": "student", "student": "teacher"}
    places = [(turned[one.side], *one[1:5]) for one in mirror.unaligned]
    assert sorted(one[:5] for one in found.unaligned) == sorted(places)


def _ids_agree(found: Alignment, faithful: bool) -> None:
    """The batched form finds the same spans where both sides write the text."""
    rows = [list(found.teacher.ids)], [list(found.student.ids)]
    batch = align_ids(found.pair, *rows)
    assert 0.0 <= batch.coverage <= 1.0
    assert (np.diff(batch.student_start) >= 0).all()
    assert (np.diff(batch.teacher_start) >= 0).all()
    if faithful:
        assert batch.spans.tolist() == [list(span) for span in found.spans]
        assert batch.coverage == 1.0


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(text=texts)
def test_one_tokenizer_pairs_one_to_one(kind: str, text: str):
    found = align(tokenizer(kind), tokenizer(kind), text)
    assert found.pairs == [(n, n) for n in range(len(found.teacher.ids))]
    if found.teacher.ids:
        assert found.coverage == 1.0
        assert found.unaligned == []


@pytest.mark.parametrize(("teacher", "student"), list(itertools.permutations(LOSSLESS, 2))[::3])
@SETTINGS
@given(data=st.data())
def test_sampled_ids_are_placed_by_their_bytes(teacher: str, student: str, data: st.DataObject):
    """Any ids of the student against the teacher's own split of the text they decode to."""
    made, other = tokenizer(student), tokenizer(teacher)
    pair = TokenizerPair.of(other, made)
    writing = [token for token, _ in pair.student.writing()]
    ids = data.draw(st.lists(st.sampled_from(writing), max_size=30))
    data_of = b"".join(pair.student.token_bytes[one] or b"" for one in ids)
    text = data_of.decode(errors="replace")
    theirs = other.encode(text, add_special_tokens=False)
    found = align_ids(pair, [theirs], [ids])
    single = align_response(other, made, theirs, ids)
    assert [list(span) for span in single.spans] == found.spans.tolist()
    placed = {n for span in found.spans.tolist() for n in range(span[2], span[3])}
    lost = {one.token for one in found.unaligned() if one.side == "student"}
    assert placed | lost == set(range(len(ids)))
    assert not placed & lost
    if text.encode() == data_of and _faithful(teacher, text):
        assert found.coverage == 1.0


@SETTINGS
@given(data=st.data())
def test_spans_are_the_smallest_that_both_sides_cut(data: st.DataObject):
    """Against a definition without arithmetic: walk the text, cut where both sides cut."""
    length = data.draw(st.integers(0, 24))
    sides = []
    for _ in range(2):
        cuts = sorted(data.draw(st.sets(st.integers(0, length))) | {0, length})
        tokens = list(itertools.pairwise(cuts))
        kept = [one for one in tokens if data.draw(st.integers(0, 4))]  # some are not placed
        sides.append(kept)
    arrays = [np.array([one[n] for one in side], np.int64) for side in sides for n in (0, 1)]
    expected = []
    covered = [{n for start, end in side for n in range(start, end)} for side in sides]
    edges = [{place for one in side for place in one} for side in sides]
    common = sorted(edges[0] & edges[1])
    for start, end in itertools.pairwise(common):
        if all(set(range(start, end)) <= one for one in covered):
            span = []
            for side in sides:
                inside = [n for n, one in enumerate(side) if start <= one[0] and one[1] <= end]
                span += [inside[0], inside[-1] + 1]
            expected.append(span)
    assert spans(*arrays).tolist() == expected
