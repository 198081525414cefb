"""The same conversation through both chat templates."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from kdflow_lab import zoo
from kdflow_lab.align import align_conversation
from kdflow_lab.errors import DataError

MESSAGES = [{"role": "user", "content": "Say two."}, {"role": "assistant", "content": "Two."}]


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return (
        AutoTokenizer.from_pretrained(zoo.path("zoo/teacher")),
        AutoTokenizer.from_pretrained(zoo.path("zoo/student-unigram")),
    )


def test_messages_are_aligned_and_marks_of_one_template_are_not(both: tuple[Any, Any]):
    found = align_conversation(*both, MESSAGES)
    text = b"".join(found.data[start:end] for start, end in found.span_bytes).decode()
    assert text == "\nSay two.\n\nTwo.\n"  # each template writes its roles in its own way
    ends = [(a, c) for a, c in found.pairs if found.teacher.ids[a] == both[0].eos_token_id]
    assert [found.student.ids[c] for _, c in ends] == [both[1].eos_token_id] * 2
    assert {one.text for one in found.unaligned if one.text} == {"user", "assistant"}
    assert found.tokenizers == both


def test_each_side_reads_its_own_template(both: tuple[Any, Any]):
    found = align_conversation(*both)
    for side, tokenizer in zip((found.teacher, found.student), both, strict=True):
        assert tokenizer.decode(side.ids).count("Eleven.") == 1
    assert found.student.ids[0] == both[1].bos_token_id


def test_a_tokenizer_without_a_template_is_refused(both: tuple[Any, Any]):
    bare = AutoTokenizer.from_pretrained(zoo.path("zoo/student-unigram"))
    bare.chat_template = None
    with pytest.raises(DataError, match="The student's tokenizer has no chat template"):
        align_conversation(both[0], bare)
