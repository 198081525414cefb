"""The same rows for both models: what is kept, where answers lie, and the teacher's own prompt."""

from __future__ import annotations

import numpy as np
import pytest

from kdflow_lab import zoo
from kdflow_lab.align.pairing import Pairing, one_to_one, spans
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.data import sources
from kdflow_lab.data.batches import pack
from kdflow_lab.data.both import answers, tokenize_for_both
from kdflow_lab.data.table import TokenTable
from kdflow_lab.errors import DataError
from kdflow_lab.load import load_tokenizer


@pytest.fixture(scope="module")
def ours():
    return load_tokenizer(str(zoo.path("zoo/student-unigram")))


@pytest.fixture(scope="module")
def theirs():
    return load_tokenizer(str(zoo.path("zoo/teacher")))


@pytest.fixture(scope="module")
def pair(ours, theirs):
    return TokenizerPair.of(theirs, ours)


@pytest.fixture(scope="module")
def table(ours, theirs, pair) -> TokenTable:
    data = zoo.dataset("zoo/tasks", rows=40)
    return tokenize_for_both(data, ours, theirs, pair=pair, max_length=128)[0]


def _pairing(table: TokenTable, rows: list[int]) -> Pairing:
    pairing = pack(table, rows, step=0, index=0).pairing
    assert pairing is not None
    return pairing


def test_both_sides_spell_the_same_answers(table, ours, theirs) -> None:
    assert table.teacher is not None
    for row in range(len(table)):
        texts = []
        for side, tokenizer in ((table, ours), (table.teacher, theirs)):
            ids, mask = side.row(row)
            texts.append(tokenizer.decode(ids[mask.astype(bool)], skip_special_tokens=True))
        assert texts[0] == texts[1] != ""
    assert (table.row_index == table.teacher.row_index).all()


def test_every_answer_is_covered_from_its_start_to_its_end(table) -> None:
    for side in (table, table.asked):
        assert side.start is not None and side.end is not None
        for row in range(len(side)):
            part = slice(*side.response_offsets[row : row + 2])
            assert side.start[part][0] == 0
            assert (side.start[part][1:] == side.end[part][:-1]).all()


def test_a_micro_batch_pairs_each_row_with_itself(table) -> None:
    rows = [7, 0, 31]
    batch = pack(table, rows, step=0, index=0)
    pairing = batch.pairing
    assert pairing is not None and batch.teacher is not None
    assert len(pairing.student_start) == len(batch.labels)
    assert len(pairing.teacher_start) == len(batch.teacher.labels)
    assert (pairing.teacher_labels == batch.teacher.labels.numpy()).all()
    found = spans(
        pairing.teacher_start, pairing.teacher_end, pairing.student_start, pairing.student_end
    )
    assert found[0].tolist()[::2] == [0, 0]
    assert found[-1].tolist()[1::2] == [len(batch.teacher.labels), len(batch.labels)]
    pairs = one_to_one(found)
    assert (pairing.teacher_sample[pairs[:, 0]] == pairing.student_sample[pairs[:, 1]]).all()


def test_rows_put_together_pair_as_they_do_alone(table) -> None:
    together = _pairing(table, [3, 4, 5])
    found = spans(
        together.teacher_start, together.teacher_end, together.student_start, together.student_end
    )
    alone = []
    teacher_before = student_before = 0
    for row in (3, 4, 5):
        one = _pairing(table, [row])
        here = spans(one.teacher_start, one.teacher_end, one.student_start, one.student_end)
        alone.append(here + np.repeat([teacher_before, student_before], 2))
        teacher_before += len(one.teacher_start)
        student_before += len(one.student_start)
    assert (found == np.concatenate(alone)).all()


def test_an_empty_micro_batch_pairs_nothing(table) -> None:
    batch = pack(table, [], step=0, index=0)
    assert batch.pairing is not None and len(batch.pairing.student_start) == 0
    assert batch.asked.rows.numel() == 0


def test_arrays_go_to_another_rank_and_back(table) -> None:
    back = TokenTable.from_arrays(table.arrays())
    assert back.teacher is not None and table.teacher is not None
    for name, array in table.arrays().items():
        assert (back.arrays()[name] == array).all(), name


def test_some_rows_of_a_table_are_the_rows(table) -> None:
    taken = table.take(np.array([5, 2]))
    for place, row in enumerate((5, 2)):
        assert (taken.row(place)[0] == table.row(row)[0]).all()
        assert (taken.asked.row(place)[0] == table.asked.row(row)[0]).all()
    part = slice(*table.response_offsets[5:7])
    assert taken.start is not None and table.start is not None
    assert (taken.start[: part.stop - part.start] == table.start[part]).all()


def test_a_row_too_long_for_one_side_is_left_out_on_both(ours, theirs, pair) -> None:
    rows = [
        {"prompt": "short", "completion": "fine"},
        {"prompt": "Ω" * 30, "completion": "many bytes"},  # 60 byte tokens for either
        {"prompt": "also", "completion": "fine"},
    ]
    data = sources.load(rows)
    table, report = tokenize_for_both(data, ours, theirs, pair=pair, max_length=40)
    assert table.row_index.tolist() == table.asked.row_index.tolist() == [0, 2]
    assert (report.kept, report.dropped) == (2, 1)


@pytest.mark.parametrize("as_messages", [False, True])
def test_the_teacher_reads_a_prompt_of_its_own(theirs, as_messages) -> None:
    data = sources.load(
        [
            {"prompt": "2+2?", "completion": "4", "hint": "It is even. 2+2?"},
            {
                "prompt": "Hi",
                "completion": "Hello",
                "hint": [{"role": "user", "content": "Say it"}],
            },
        ][:1]
    )
    table, _ = tokenize_for_both(data, theirs, theirs, teacher_input="hint", max_length=64)
    assert table.teacher is not None and table.start is None
    assert "even" in theirs.decode(table.teacher.row(0)[0])
    assert "even" not in theirs.decode(table.row(0)[0])
    assert answers(table).tolist() == answers(table.teacher).tolist()
    assert pack(table, [0], step=0, index=0).asked.input_ids.numel() > table.lengths[0] - 1


@pytest.mark.parametrize(
    ("rows", "column", "words"),
    [
        ([{"prompt": "a", "completion": "b"}], "hnt", "does not have"),
        ([{"prompt": "a", "completion": "b", "hint": "c"}], "hnit", "Did you mean 'hint'"),
        ([{"text": "a b", "hint": "c"}], "hint", "plain text"),
        ([{"prompt": "a", "completion": "b", "hint": 3}], "hint", "expected a text or a list"),
    ],
)
def test_a_wrong_teacher_input_says_what_is_wrong(theirs, rows, column, words) -> None:
    with pytest.raises(DataError, match=words):
        tokenize_for_both(sources.load(rows), theirs, theirs, teacher_input=column, max_length=64)
