"""The weights that ship: complete, small, and the teacher knows what the student does not."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest

from kdflow_lab import zoo
from kdflow_lab.zoo.scoring import accuracy
from kdflow_lab.zoo.tasks import KINDS, stream

ROWS_PER_KIND = 30


class Loaded(NamedTuple):
    model: Any
    tokenizer: Any


def _load(name: str) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = zoo.path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return Loaded(model.eval(), AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def teacher() -> Loaded:
    return _load("zoo/teacher")


@pytest.fixture(scope="module")
def student() -> Loaded:
    return _load("zoo/student")


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    """Rows of the test split, equally many of each kind: each share means something."""
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for row in stream("test", seed=2024):
        if counts[row["kind"]] < ROWS_PER_KIND:
            counts[row["kind"]] += 1
            rows.append(row)
        if len(rows) == ROWS_PER_KIND * len(KINDS):
            return rows
    raise AssertionError


def test_the_teacher_answers_held_out_rows(teacher, held_out):
    scores = accuracy(teacher.model, teacher.tokenizer, held_out)
    assert scores["all"] >= 0.9, scores
    assert min(scores[kind] for kind in KINDS) >= 0.8, scores


def test_the_student_cannot_do_the_tasks_yet(student, held_out):
    assert accuracy(student.model, student.tokenizer, held_out)["all"] < 0.05


def test_the_student_can_copy(student):
    """It is a language model, not noise: distillation starts from something."""
    from itertools import islice

    from kdflow_lab.zoo import prose

    rows = (row for row in prose.chat("validation", seed=5) if row["kind"] == "echo")
    assert accuracy(student.model, student.tokenizer, list(islice(rows, 60)))["echo"] > 0.3


def test_both_speak_the_same_tokens(teacher, student):
    from kdflow_lab.align.shared_vocab import shared_vocabulary

    ours, theirs = (loaded.tokenizer.backend_tokenizer.to_str() for loaded in (teacher, student))
    assert ours == theirs
    assert teacher.tokenizer.chat_template == student.tokenizer.chat_template
    rows = {name: loaded.model.lm_head.weight.shape[0] for name, loaded in
            (("teacher_rows", teacher), ("student_rows", student))}  # fmt: skip
    shared = shared_vocabulary(teacher.tokenizer, student.tokenizer, **rows)
    assert (shared.size, shared.note) == (len(teacher.tokenizer), "")


def test_the_teacher_holds_a_distribution_where_several_answers_are_right(teacher):
    """Sampled greetings come in more than one style, all of them right."""
    import torch

    from kdflow_lab.zoo.scoring import answer
    from kdflow_lab.zoo.tasks import is_correct

    row = next(stream("test", kinds=["greet"]))
    torch.manual_seed(0)
    answers = answer(teacher.model, teacher.tokenizer, [row] * 100, sampling_temperature=1.0)
    heads = Counter(text.split(" ")[0] for text in answers if is_correct(row, text))
    assert sum(heads.values()) >= 85, answers
    assert len(heads) >= 3, heads
    assert heads["Hello"] > heads["Dear"], heads


@pytest.mark.parametrize("name", zoo.MODELS)
def test_no_file_is_pickled(name):
    suffixes = {file.suffix for file in zoo.path(name).iterdir()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".txt"}
    assert ".safetensors" in suffixes


def test_all_together_are_small():
    files = [file for name in zoo.MODELS for file in zoo.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20_000_000
