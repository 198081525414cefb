"""Tokens in a text that they do not spell exactly."""

from __future__ import annotations

import time

import pytest

from kdflow_lab.align.walk import BLANK, CHANGED, PLACED, SILENT, Walk, walk


def _walk(
    text: str, pieces: list[str], optional: bool = False, ends: list[int] | None = None
) -> Walk:
    return walk(text, pieces, [optional] * len(pieces), ends)


def _placed(found: Walk) -> list[tuple[int, int]]:
    return [
        (a, b)
        for a, b, became in zip(found.start, found.end, found.became, strict=True)
        if became == PLACED
    ]


def test_tokens_that_spell_the_text_lie_end_to_end():
    found = _walk("hello world", ["hel", "lo", " world"])
    assert _placed(found) == [(0, 3), (3, 5), (5, 11)]


def test_a_changed_token_loses_itself_only():
    found = _walk("a naïve café here", ["a", " na", "i", "ve", " café", " here"])
    assert found.became == [PLACED, PLACED, CHANGED, PLACED, PLACED, PLACED]
    assert _placed(found)[2:] == [(5, 7), (7, 12), (12, 17)]


def test_what_the_tokens_leave_out_is_skipped():
    found = _walk("one\n\n two three", ["one", " two", " three"])
    assert _placed(found) == [(0, 3), (5, 9), (9, 15)]


def test_tokens_that_write_nothing_are_empty_where_they_stand():
    found = _walk("abcd", ["ab", "", "cd", ""])
    assert (found.start, found.end) == ([0, 2, 2, 4], [2, 2, 4, 4])
    assert found.became == [PLACED, SILENT, PLACED, SILENT]


def test_an_optional_blank_is_dropped_where_the_text_has_none():
    found = _walk("(a b", [" (", " a", " b"], optional=True)
    assert _placed(found) == [(0, 1), (1, 2), (2, 4)]
    alone = _walk("ab", [" ", "ab"], optional=True)
    assert alone.became == [BLANK, PLACED]


def test_the_tokenizers_own_offsets_are_believed_where_a_token_is_changed():
    text = "The A b C"
    pieces, ends = ["the", " a", " b", " c"], [3, 5, 7, 9]
    assert _placed(_walk(text, pieces, ends=ends)) == [(5, 7)]


def test_an_unknown_token_takes_what_its_offset_says():
    # Without offsets, the b of the unknown word would be taken for the token.
    found = _walk("xbx b", ["", "b"], ends=[3, 5])
    assert _placed(found) == [(4, 5)]


def test_nothing_that_agrees_is_no_endless_search():
    assert _placed(_walk("a" * 50, ["b"] * 50)) == []
    assert _placed(_walk("", ["b"])) == []
    assert _placed(_walk("abc", [])) == []


def test_places_never_fall():
    found = _walk("The QUICK brown Fox jumps", ["the", " quick", " brown", " fox", " jumps"])
    assert found.start == sorted(found.start)
    assert found.end == sorted(found.end)
    assert len(_placed(found)) == 2


@pytest.mark.parametrize("kind", ["all different", "the same letter", "one in two"])
def test_time_is_linear_also_where_little_agrees(kind: str):
    """Eight times the text takes about eight times as long; a square would be sixty-four."""

    def seconds(length: int) -> float:
        if kind == "all different":
            text, pieces = "a" * length, ["b"] * length
        elif kind == "the same letter":
            text, pieces = "ab" * (length // 2), ["a"] * length
        else:
            text, pieces = "abcdefXY" * (length // 8), ["abc", "def", "xy"] * (length // 8)
        start = time.process_time()
        _walk(text, pieces)
        return time.process_time() - start

    short = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(2)) < 32 * short
