"""What was sampled is what is trained; a teacher of another tokenizer reads the same text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdflow_lab.align.pairing import spans
from kdflow_lab.align.vocabulary import TokenizerPair
from kdflow_lab.data.batches import pack
from kdflow_lab.data.table import TokenTable
from kdflow_lab.on_policy.prompts import Prompts
from kdflow_lab.on_policy.written import Writer

WORDS = "The answer is 42, not 7."


@pytest.fixture
def writer(prompts: Prompts) -> Writer:
    return Writer(prompts, None, None, None, max_tokens=256)


@pytest.fixture
def writer_of_two(
    prompts_of_two: Prompts, pair: TokenizerPair, tokenizer: Any, unigram: Any
) -> Writer:
    return Writer(prompts_of_two, pair, unigram, tokenizer, max_tokens=256)


def _answers(table: TokenTable) -> list[list[int]]:
    trained = table.input_ids[table.response_mask.astype(bool)]
    return [one.tolist() for one in np.split(trained, table.response_offsets[1:-1])]


def _of_row(table: TokenTable, row: int) -> tuple[np.ndarray, np.ndarray]:
    assert table.start is not None and table.end is not None
    part = slice(table.response_offsets[row], table.response_offsets[row + 1])
    return table.start[part], table.end[part]


def test_sampled_ids_are_trained_and_nothing_else(
    writer: Writer, prompts: Prompts, tokenizer: Any, sample: Callable[..., Any]
) -> None:
    """Ids that no tokenizer would make of their text, an answer that was cut, one of two ids."""
    a, *letters = tokenizer.convert_tokens_to_ids(["a", "t", "h", "e"])
    stop = tokenizer.eos_token_id
    odd = [*letters, stop, a]  # a stop id within: it did not end this answer
    assert tokenizer.encode(tokenizer.decode(letters), add_special_tokens=False) != letters
    samples = [
        sample([*odd, stop], prompt=1),
        sample([a] * 32, prompt=0, finished=False),
        sample([stop], prompt=1),
    ]
    table = writer.table([7, 3], samples)
    assert _answers(table) == [one.ids.tolist() for one in samples]
    for row, prompt in enumerate((3, 7, 3)):
        ids, mask = table.row(row)
        expected = prompts.student.row(prompt)[0].tolist()
        assert ids.tolist() == [*expected, *samples[row].ids.tolist()]
        assert mask.tolist() == [0] * len(expected) + [1] * len(samples[row].ids)
    assert table.row_index.tolist() == prompts.student.row_index[[3, 7, 3]].tolist()
    assert table.teacher is None and table.start is None

    taken = table.take(np.array([2, 0]))
    batch = pack(taken, [1, 0], step=0, index=0)
    both = [*samples[0].ids.tolist(), *samples[2].ids.tolist()]
    assert batch.labels.tolist() == both
    assert batch.logprobs is not None
    known = [*samples[0].logprobs.tolist(), *samples[2].logprobs.tolist()]
    assert batch.logprobs.tolist() == known


def test_a_prompt_of_the_teachers_own_gets_the_same_answer(
    prompts: Prompts, tokenizer: Any, sample: Callable[..., Any]
) -> None:
    other = Prompts(prompts.student, prompts.student.take(np.arange(len(prompts))[::-1]))
    answer = [*tokenizer.encode(WORDS, add_special_tokens=False), tokenizer.eos_token_id]
    table = Writer(other, None, None, None, max_tokens=256).table([2], [sample(answer)])
    assert table.teacher is not None
    assert _answers(table) == _answers(table.teacher) == [answer]
    last = len(prompts) - 1
    theirs = table.teacher.row(0)[0].tolist()
    assert theirs[: -len(answer)] == prompts.student.row(last - 2)[0].tolist()
    batch = pack(table, [0], step=0, index=0)
    assert batch.asked.labels.tolist() == batch.labels.tolist() == answer


def test_another_tokenizer_reads_the_text_and_every_byte_is_aligned(
    writer_of_two: Writer, prompts_of_two: Prompts, tokenizer: Any, unigram: Any, sample: Any
) -> None:
    ids = unigram.encode(WORDS, add_special_tokens=False)
    table = writer_of_two.table(
        [4], [sample([*ids, unigram.eos_token_id]), sample(ids, finished=False)]
    )
    assert table.teacher is not None
    assert _answers(table) == [[*ids, unigram.eos_token_id], ids]
    theirs = tokenizer.encode(WORDS, add_special_tokens=False)
    assert _answers(table.teacher) == [[*theirs, tokenizer.eos_token_id], theirs]
    prompt = prompts_of_two.teacher
    assert prompt is not None
    assert table.teacher.row(1)[0].tolist() == [*prompt.row(4)[0].tolist(), *theirs]
    for row, ends in enumerate((1, 0)):
        ours, others = _of_row(table, row), _of_row(table.teacher, row)
        for start, end in (ours, others):
            assert start[0] == 0 and (start[1:] == end[:-1]).all()
            assert end[-1] == len(WORDS.encode()) + ends
        found = spans(*others, *ours)
        assert found[0, [0, 2]].tolist() == [0, 0]
        assert found[-1, [1, 3]].tolist() == [len(others[0]), len(ours[0])]


def test_special_tokens_stay_what_they_are(
    writer_of_two: Writer, tokenizer: Any, unigram: Any, sample: Any
) -> None:
    """In the middle: the teacher's of the same role, not its spelling."""
    end, word = unigram.eos_token_id, unigram.encode("sun", add_special_tokens=False)
    table = writer_of_two.table([0], [sample([end, *word, end, end, *word, end])])
    assert table.teacher is not None
    theirs = tokenizer.eos_token_id
    spelled = tokenizer.encode("sun", add_special_tokens=False)
    expected = [theirs, *spelled, theirs, theirs, *spelled, theirs]
    assert _answers(table.teacher) == [expected]
    assert _of_row(table, 0)[1][-1] == _of_row(table.teacher, 0)[1][-1] == 10


@pytest.mark.parametrize("token", ["<|user|>", "pad"])
def test_special_tokens_that_mean_nothing_to_the_teacher_are_left_out(
    writer_of_two: Writer, tokenizer: Any, unigram: Any, sample: Any, token: str
) -> None:
    """Spelled out they would be other text."""
    lonely = unigram.pad_token_id if token == "pad" else unigram.convert_tokens_to_ids("<|user|>")
    word = unigram.encode("sun", add_special_tokens=False)
    table = writer_of_two.table([0], [sample([*word, lonely, *word], finished=False)])
    assert table.teacher is not None
    spelled = tokenizer.encode("sun", add_special_tokens=False)
    assert _answers(table.teacher) == [[*spelled, *spelled]]
    start, end = _of_row(table, 0)
    assert start[len(word)] == end[len(word)]  # placed nowhere


def test_half_a_character_is_trained_but_not_aligned(
    writer_of_two: Writer, pair: TokenizerPair, unigram: Any, sample: Any
) -> None:
    bytes_of = {
        text: token for token, text in enumerate(pair.student.token_bytes) if text is not None
    }
    word = unigram.encode("sun", add_special_tokens=False)
    half = bytes_of["é".encode()[:1]]
    table = writer_of_two.table([0], [sample([*word, half], finished=False)])
    assert table.teacher is not None
    assert _answers(table) == [[*word, half]]
    start, end = _of_row(table, 0)
    assert (end > start).tolist() == [True] * len(word) + [False]
    assert end[len(word) - 1] == 3


@pytest.mark.parametrize("finished", [True, False])
def test_an_answer_without_text(
    writer_of_two: Writer, tokenizer: Any, unigram: Any, sample: Any, finished: bool
) -> None:
    """Nothing but the end, or nothing but a token that writes nothing: one row for the teacher."""
    token = unigram.eos_token_id if finished else unigram.unk_token_id
    table = writer_of_two.table([0], [sample([token], finished=finished)])
    assert table.teacher is not None
    assert _answers(table) == [[token]]
    assert len(_answers(table.teacher)[0]) == 1
    batch = pack(table, [0], step=0, index=0)
    assert batch.pairing is not None
    placed = batch.pairing.student_end > batch.pairing.student_start
    assert placed.tolist() == [finished]


def test_what_is_too_long_for_the_teacher_is_not_aligned_at_its_end(
    prompts_of_two: Prompts, pair: TokenizerPair, tokenizer: Any, unigram: Any, sample: Any
) -> None:
    teacher = prompts_of_two.teacher
    assert teacher is not None
    most = int(teacher.lengths[0]) + 3
    writer = Writer(prompts_of_two, pair, unigram, tokenizer, max_tokens=most)
    ids = unigram.encode(WORDS, add_special_tokens=False)
    table = writer.table([0], [sample([*ids, unigram.eos_token_id])])
    assert table.teacher is not None
    theirs = tokenizer.encode(WORDS, add_special_tokens=False)
    assert _answers(table.teacher) == [theirs[:3]]
    assert _answers(table) == [[*ids, unigram.eos_token_id]]
    read = len(tokenizer.decode(theirs[:3]).encode())
    batch = pack(table, [0], step=0, index=0)
    pairing = batch.pairing
    assert pairing is not None
    found = spans(
        pairing.teacher_start, pairing.teacher_end, pairing.student_start, pairing.student_end
    )
    assert found[:, 1].max() <= 3
    assert pairing.student_end[found[:, 3] - 1].max() <= read
