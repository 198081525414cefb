"""The alignment against what KDFlow and TRL make of it (golden/README.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from kdflow_lab.align import AlignedIds, TokenizerPair, align, align_ids, align_response
from kdflow_lab.align.pairing import covering

GOLDEN = Path(__file__).parent / "golden"
INDEX: dict[str, Any] = json.loads((GOLDEN / "alignments.json").read_text())
EOS: dict[str, str] = INDEX["eos"]


@cache
def _tokenizer(name: str, bos: str | None = None) -> Any:
    file = str(GOLDEN / f"{name}.json")
    return PreTrainedTokenizerFast(tokenizer_file=file, eos_token=EOS[name], bos_token=bos)


def _ids(name: str, tokens: list[str], tokenizer: Any = None) -> list[int]:
    ids = (tokenizer or _tokenizer(name)).convert_tokens_to_ids(tokens)
    assert None not in ids
    return ids


def _responses(name: str, tokens: list[str]) -> list[list[int]]:
    """The ids of each response: every one ends with its EOS."""
    rows: list[list[int]] = [[]]
    end = _ids(name, [EOS[name]])[0]
    for token in _ids(name, tokens):
        rows[-1].append(token)
        if token == end:
            rows.append([])
    assert rows.pop() == []
    return rows


def _align(case: dict[str, Any]) -> AlignedIds:
    pair = TokenizerPair.of(_tokenizer(case["teacher"]), _tokenizer(case["student"]))
    return align_ids(
        pair,
        _responses(case["teacher"], case["teacher_tokens"]),
        _responses(case["student"], case["student_tokens"]),
    )


def _name(case: dict[str, Any]) -> str:
    return f"{case['id']}-{case['teacher']}-{case['student']}"


def test_the_files_hold_what_the_tests_below_count_on():
    assert len(INDEX["alignments"]) == 72
    assert sum(case["trusted"] for case in INDEX["alignments"]) == 50
    assert len(INDEX["groups"]) == 90


@pytest.mark.parametrize("case", INDEX["alignments"], ids=_name)
def test_the_pairs_are_those_of_equal_bytes(case: dict[str, Any]):
    found = _align(case)
    assert found.pairs.tolist() == case["correct_pairs"]
    assert found.coverage == 1.0
    if case["trusted"]:
        assert found.pairs.tolist() == case["kdflow_pairs"]


@pytest.mark.parametrize("case", INDEX["alignments"], ids=_name)
def test_positions_with_an_equal_prefix_are_those_where_a_token_begins_with_the_teachers(
    case: dict[str, Any],
):
    cover = covering(_align(case).pairing())
    begins = np.flatnonzero((cover.teacher >= 0) & (cover.depth == 0))
    assert [[int(cover.teacher[n]), int(n)] for n in begins] == case["boundary_pairs"]


@pytest.mark.parametrize(
    "case",
    [case for case in INDEX["alignments"] if len(case["texts"]) == 1],
    ids=_name,
)
def test_a_text_is_aligned_as_its_ids_are(case: dict[str, Any]):
    teacher, student = _tokenizer(case["teacher"]), _tokenizer(case["student"])
    found = align(teacher, student, case["texts"][0])
    end = [len(found.teacher.ids), len(found.student.ids)]
    assert [*map(list, found.pairs), end] == case["correct_pairs"]
    assert found.coverage == 1.0


@pytest.mark.parametrize("case", INDEX["overlap"], ids=lambda c: f"{c['teacher']}-{c['student']}")
def test_every_shared_token_of_kdflow_is_shared_by_its_bytes(case: dict[str, Any]):
    pair = TokenizerPair.of(_tokenizer(case["teacher"]), _tokenizer(case["student"]))

    def written(ours: int, theirs: int) -> tuple[bytes | None, bytes | None]:
        return pair.student.token_bytes[ours], pair.teacher.token_bytes[theirs]

    teacher, student = (ids.tolist() for ids in pair.shared)
    found = [written(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    # By bytes: of two ids that write the same, such as A and <0x41>, the golden file takes any.
    expected = [written(*one) for one in case["correct_byte_pairs"]]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert {written(ours, theirs) for ours, theirs, _ in case["kdflow_pairs"]} <= set(found)
    for side, ids in ((pair.student, student), (pair.teacher, teacher)):
        preferred = {
            side.token_bytes[one] for one in range(len(side)) if one not in side.byte_fallback
        }
        assert not [
            one for one in side.byte_fallback & set(ids) if side.token_bytes[one] in preferred
        ]


@pytest.mark.parametrize("case", INDEX["groups"], ids=lambda c: f"{c['id']}-{c['kind']}")
def test_the_spans_are_the_finest_groups(case: dict[str, Any]):
    """Tokens that write nothing are left out: TRL puts them into the group that follows them."""
    sides = {}
    for name in ("teacher", "student"):
        bos = "<bos>" if "<bos>" in case[f"{name}_tokens"] else None
        sides[name] = _tokenizer(case[name], bos)
    found = align_response(
        sides["teacher"],
        sides["student"],
        *(_ids(case[name], case[f"{name}_tokens"], sides[name]) for name in sides),
    )
    for name, column in (("teacher", 0), ("student", 2)):
        offsets = [tuple(one) for one in case[f"{name}_offsets"]]
        end = EOS[case[name]]
        silent = {
            n
            for n, (start, stop) in enumerate(offsets)
            if start == stop and case[f"{name}_tokens"][n] != end
        }
        groups = [[n for n in group if n not in silent] for group in case[f"{name}_groups"]]
        assert [list(range(s[column], s[column + 1])) for s in found.spans] == groups
        assert list(getattr(found, name).byte_spans) == offsets
    assert found.coverage == 1.0
