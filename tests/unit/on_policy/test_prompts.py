"""What both models read before an answer is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from kdflow_lab.data.prompts import prompts as prompt_ids
from kdflow_lab.data.sources import load
from kdflow_lab.errors import DataError
from kdflow_lab.on_policy.prompts import Prompts, join_prompts, read_prompts

SIZES: dict[str, Any] = {"teacher_input": None, "max_length": 256, "max_new_tokens": 32}
USER = {"role": "user", "content": "Sort the letters: k b x a"}


def _rows(side: Any) -> list[list[int]]:
    return [side.row(number)[0].tolist() for number in range(len(side))]


def test_one_tokenizer_one_side(prompts: Prompts, data: Any, tokenizer: Any) -> None:
    assert prompts.teacher is None
    assert _rows(prompts.student) == prompt_ids(data, tokenizer)
    assert not prompts.student.response_mask.any()
    assert prompts.longest.tolist() == prompts.student.lengths.tolist()
    assert prompts.student.row_index.tolist() == list(range(len(data)))


def test_two_tokenizers_two_sides(
    prompts_of_two: Prompts, data: Any, tokenizer: Any, unigram: Any
) -> None:
    assert prompts_of_two.teacher is not None
    assert _rows(prompts_of_two.student) == prompt_ids(data, unigram)
    assert _rows(prompts_of_two.teacher) == prompt_ids(data, tokenizer)
    both = zip(prompts_of_two.student.lengths, prompts_of_two.teacher.lengths, strict=True)
    assert prompts_of_two.longest.tolist() == [max(one) for one in both]


def test_the_teacher_may_have_a_prompt_of_its_own_and_answers_are_not_needed(
    tokenizer: Any,
) -> None:
    asked = {"role": "assistant", "content": "Which ones?"}
    hint = [{"role": "system", "content": "a b k x"}, USER, asked, USER]
    rows = Dataset.from_list([{"messages": [USER], "hint": hint}])
    found, left_out = read_prompts(rows, tokenizer, None, **{**SIZES, "teacher_input": "hint"})
    assert left_out.dropped == 0 and found.teacher is not None
    assert _rows(found.student) == prompt_ids(rows, tokenizer)
    (theirs,) = _rows(found.teacher)
    assert theirs == prompt_ids(Dataset.from_list([{"prompt": hint}]), tokenizer)[0]
    assert tokenizer.decode(theirs).count(USER["content"]) == 2
    assert found.longest.tolist() == [len(theirs)]

    texts = Dataset.from_list([{"prompt": "What is it?", "hint": "It is 7. What is it?"}])
    found, _ = read_prompts(texts, tokenizer, None, **{**SIZES, "teacher_input": "hint"})
    assert found.teacher is not None
    assert "It is 7" in tokenizer.decode(found.teacher.row(0)[0])
    assert "It is 7" not in tokenizer.decode(found.student.row(0)[0])
    with pytest.raises(DataError, match=r"'hnt', which the data does not have.* 'hint'"):
        read_prompts(texts, tokenizer, None, **{**SIZES, "teacher_input": "hnt"})


def test_the_datas_own_answers_do_not_matter(data: Any, tokenizer: Any, prompts: Prompts) -> None:
    def other(row: dict[str, Any]) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "No idea."}
        return {"messages": [*row["messages"][:-1], answer]}

    found, _ = read_prompts(data.map(other), tokenizer, None, **SIZES)
    assert _rows(found.student) == _rows(prompts.student)


def test_prompts_without_room_are_left_out_and_counted(data: Any, tokenizer: Any) -> None:
    lengths = np.array([len(one) for one in prompt_ids(data, tokenizer)])
    room = int(np.median(lengths))
    sizes = {**SIZES, "max_length": room + 32}
    found, left_out = read_prompts(data, tokenizer, None, **sizes)
    kept = np.flatnonzero(lengths <= room)
    assert 0 < left_out.dropped == len(data) - len(kept)
    assert found.student.row_index.tolist() == kept.tolist()
    with pytest.raises(DataError, match=f"the shortest has {lengths.min()} tokens"):
        read_prompts(data, tokenizer, None, **{**SIZES, "max_length": int(lengths.min()) + 31})


def test_arrays_give_the_same_prompts(prompts: Prompts, prompts_of_two: Prompts) -> None:
    for one in (prompts, prompts_of_two):
        again = Prompts.from_arrays(one.arrays())
        assert _rows(again.student) == _rows(one.student)
        assert (again.teacher is None) == (one.teacher is None)
        if one.teacher is not None and again.teacher is not None:
            assert _rows(again.teacher) == _rows(one.teacher)


def test_bad_rows_raise_or_are_skipped_and_listed(data: Any, tokenizer: Any, unigram: Any) -> None:
    rows = [{"messages": row["messages"], "hint": "So."} for row in data]
    rows[2] = {"messages": [{"role": "usr", "content": "?"}], "hint": "So."}
    rows[5] = {"messages": rows[5]["messages"], "hint": None}
    mixed = load(rows)
    with pytest.raises(DataError, match=r"(?s)1 of 12 rows .*row 2: .*on_bad_rows"):
        read_prompts(mixed, tokenizer, None, **SIZES)
    found, left_out = read_prompts(mixed, tokenizer, None, on_bad_rows="skip", **SIZES)
    assert found.student.row_index.tolist() == [k for k in range(12) if k != 2]
    assert left_out.dropped == 0
    assert [source for source, _ in left_out.bad] == ["row 2"]
    assert left_out.summary()["skipped"] == 1
    # bad on the teacher's side alone
    sizes = {**SIZES, "teacher_input": "hint", "on_bad_rows": "skip"}
    found, left_out = read_prompts(mixed, unigram, tokenizer, **sizes)
    assert found.teacher is not None
    for side in (found.student, found.teacher):
        assert side.row_index.tolist() == [k for k in range(12) if k not in (2, 5)]
    assert [source for source, _ in left_out.bad] == ["row 2", "row 5"]
    with pytest.raises(DataError, match="None is left"):
        read_prompts(load([rows[2]]), tokenizer, None, on_bad_rows="skip", **SIZES)


def test_prompts_of_several_data_sets_are_joined(
    prompts: Prompts, data: Any, tokenizer: Any
) -> None:
    hinted = load([{"messages": [USER], "hint": "It is sorted."}])
    sizes = {**SIZES, "teacher_input": "hint"}
    other, _ = read_prompts(hinted, tokenizer, None, **sizes)
    joined = join_prompts([prompts.of_source(0), other.of_source(1, first_row=len(data))])
    assert len(joined) == len(data) + 1 and joined.teacher is not None
    assert _rows(joined.student) == _rows(prompts.student) + _rows(other.student)
    assert _rows(joined.teacher)[:-1] == _rows(prompts.student)
    assert joined.student.row_index[-1] == len(data)
    assert joined.student.source is not None and joined.student.source.tolist()[-2:] == [0, 1]
