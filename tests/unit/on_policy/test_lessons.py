"""A real student, a real rollout engine and the schedule between them, in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rollout_engine import apart
from torch.distributed.device_mesh import init_device_mesh

from kdflow_lab import zoo
from kdflow_lab.config import DistillConfig
from kdflow_lab.data.tokens import tokenize
from kdflow_lab.errors import ConfigError
from kdflow_lab.lessons import DataLessons, Lesson
from kdflow_lab.load import load_model
from kdflow_lab.on_policy.lessons import PINNED, WrittenLessons
from kdflow_lab.on_policy.prompts import Prompts
from kdflow_lab.on_policy.written import Writer
from kdflow_lab.rollout.client import RolloutEnd
from kdflow_lab.rollout.serving import Serving
from kdflow_lab.rollout.transformers import TransformersRollout
from kdflow_lab.student.fsdp import Student

STUDENT = zoo.path("zoo/student")
NEW = 6


@pytest.fixture(scope="module")
def student() -> Iterator[Student]:
    """The only rank of a group."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        meet = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    config = DistillConfig(max_length=256)
    yield Student(str(STUDENT), config=config, mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    """Where a rollout engine listens."""
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        path = str(Path(folder) / "rollout.sock")
        backend = TransformersRollout(str(STUDENT), dtype="float32")
        serving = Serving(backend, path, threads=1)
        yield path
        serving.close()


@pytest.fixture
def table(data: Any, tokenizer: Any) -> Any:
    return tokenize(data, tokenizer, max_length=256)[0]


@pytest.fixture
def opened(student: Student, socket: str, prompts: Prompts, tokenizer: Any) -> Any:
    @contextmanager
    def open_lessons(data: Any = None, **options: Any) -> Iterator[WrittenLessons]:
        config = DistillConfig.parse(
            **{
                "on_policy": True,
                "max_new_tokens": NEW,
                "max_length": 256,
                "batch_size": 4,
                "steps": 8,
                **options,
            }
        )
        buffers = 2 if config.max_staleness else 1
        with RolloutEnd(socket, buffers=buffers) as end:
            yield WrittenLessons(
                prompts,
                Writer(prompts, None, None, None, max_tokens=config.micro_batch_tokens),
                end,
                student,
                config=config,
                stop_ids=[tokenizer.eos_token_id],
                rank=0,
                world_size=1,
                data=None if data is None else DataLessons(data, config, 1),
            )

    return open_lessons


def _take(lessons: WrittenLessons, steps: range) -> list[tuple[Lesson, dict[str, float]]]:
    """Prepare and learn some steps; the student stays as it is, its versions count."""
    taken = []
    for step in steps:
        lessons.prepare(step)
        lesson = lessons.lesson(step)
        assert lesson is not None
        taken.append((lesson, lessons.measured()))
        lessons.learnt(step, 0.1)
    return taken


def _ids(taken: list[tuple[Lesson, dict[str, float]]]) -> list[list[int]]:
    return [lesson.table.input_ids.tolist() for lesson, _ in taken]


def _prompts(lesson: Lesson) -> list[int]:
    return lesson.table.row_index.tolist()


def test_what_was_sampled_by_the_present_weights_is_what_is_trained(
    opened: Any, prompts: Prompts
) -> None:
    model = load_model(str(STUDENT)).eval()
    with opened() as lessons:
        ((lesson, measured),) = _take(lessons, range(1))
        written = lessons.of_step(0)
    assert len(written) == len(lesson.table) == 4
    assert sorted(row for by_rank in lesson.plan.micro_batches for row in by_rank[0]) == [*range(4)]
    for row, (prompt, sample) in enumerate(written):
        ids, mask = lesson.table.row(row)
        expected = prompts.student.row(prompt)[0]
        assert ids.tolist() == [*expected.tolist(), *sample.ids.tolist()]
        assert mask.sum() == len(sample.ids)
        assert sample.version == 0
        alone = [expected] * (sample.prompt + 1)
        assert apart(model, alone, [sample]) < 1e-4
    tokens = sum(len(one.ids) for _, one in written)
    assert lesson.plan.num_valid_tokens == tokens
    assert measured["answer_tokens"] == pytest.approx(tokens / 4)
    assert measured["truncated"] == np.mean([not one.finished for _, one in written])
    assert lesson.table.logprobs is not None
    assert lesson.table.logprobs.tolist() == [
        value for _, one in written for value in one.logprobs.tolist()
    ]


def test_a_resumed_run_goes_on_with_the_same_answers(opened: Any) -> None:
    """Whatever was done before, a checkpoint in between included."""
    with opened() as lessons:
        whole = _take(lessons, range(6))
    with opened() as lessons:
        begun = _take(lessons, range(3))
        lessons.saved(3)
        begun += _take(lessons, range(3, 4))
    with opened() as lessons:
        resumed = _take(lessons, range(3, 6))
    assert _ids(begun) == _ids(whole)[:4]
    assert _ids(resumed) == _ids(whole)[3:]
    with opened(seed=7) as lessons:
        assert _ids(_take(lessons, range(1))) != _ids(whole)[:1]


def test_every_prompt_comes_once_an_epoch(opened: Any, prompts: Prompts) -> None:
    with opened(samples_per_prompt=2) as lessons:
        assert lessons.steps_per_epoch == len(prompts) / 2
        taken = _take(lessons, range(6))
    rows = [_prompts(lesson) for lesson, _ in taken]
    assert all(sorted(one[::2]) == sorted(one[1::2]) for one in rows)
    assert sorted(row for one in rows for row in one[::2]) == list(range(len(prompts)))
    twice = taken[0][0].table
    assert twice.row(0)[0].tolist() != twice.row(1)[0].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0] * 8),
        ({"max_staleness": 1}, [0] + [1] * 7),
        ({"max_staleness": 2, "sync_every": 2}, [0, 1, 2, 1, 2, 1, 2, 1]),
        ({"max_staleness": 1, "steps_per_rollout": 2}, [0, 1] * 4),
    ],
)
def test_staleness_is_never_above_the_limit(
    opened: Any, options: dict[str, Any], expected: list[int]
) -> None:
    with opened(**options) as lessons:
        taken = _take(lessons, range(8))
    assert [measured["staleness"] for _, measured in taken] == expected


def test_checkpoints_do_not_change_what_is_learnt(opened: Any) -> None:
    """Also with a hand-over every second step, which a checkpoint must not bring forward."""
    options = {"max_staleness": 3, "sync_every": 3}
    with opened(**options) as lessons:
        whole = _take(lessons, range(8))
    with opened(**options) as lessons:
        cut = _take(lessons, range(5))
        lessons.saved(5)
        cut += _take(lessons, range(5, 8))
    assert [one["staleness"] for _, one in cut] == [one["staleness"] for _, one in whole]
    assert _ids(cut) == _ids(whole)


def test_nothing_is_asked_for_behind_the_last_step(opened: Any) -> None:
    with opened(max_staleness=1, steps=3) as lessons:
        _take(lessons, range(3))
        assert sorted(lessons.groups) == [2]
        assert lessons._asked == []
        lessons._config.steps = 5  # more are asked for
        assert len(_take(lessons, range(3, 5))) == 2


def test_parts_of_a_group_are_learnt_one_after_the_other(opened: Any) -> None:
    options = {"steps_per_rollout": 2, "max_staleness": 1, "samples_per_prompt": 2}
    with opened(**options) as lessons:
        (first, _), (second, _) = _take(lessons, range(2))
        assert [len(first.table), len(second.table)] == [4, 4]
        assert not set(_prompts(first)) & set(_prompts(second))
        parts = [[int(one) for one, _ in lessons.of_step(step)] for step in (0, 1)]
    assert parts == [_prompts(first), _prompts(second)]


def test_pinned_prompts_are_answered_greedily_by_the_newest_weights(opened: Any) -> None:
    rows = list(range(PINNED))
    with opened() as lessons:
        _take(lessons, range(2))
        pinned = lessons.pinned(rows, 2)
        again = lessons.pinned(rows, 2)
    assert [(one.prompt, one.version) for one in pinned] == [(row, 2) for row in rows]
    assert [one.ids.tolist() for one in pinned] == [one.ids.tolist() for one in again]


def test_lmbda_is_a_share_of_the_steps_and_decided_by_the_seed(opened: Any, table: Any) -> None:
    with opened(data=table, lmbda=0.5, steps=100) as lessons:
        decided = [lessons.is_on_policy(step) for step in range(400)]
        taken = _take(lessons, range(8))
    assert 160 < sum(decided) < 240
    with opened(data=table, lmbda=0.5, steps=100, seed=3) as lessons:
        assert [lessons.is_on_policy(step) for step in range(400)] != decided
    own = DataLessons(table, DistillConfig(batch_size=4, max_length=256), 1)
    for step, (lesson, measured) in enumerate(taken):
        if decided[step]:
            assert lesson.table.logprobs is not None
            assert measured["answer_tokens"] > 0
        else:
            assert lesson.table is table
            assert lesson.plan == own.plan.step(step)
            assert "answer_tokens" not in measured


def test_changed_lmbda_counts_for_steps_that_were_not_asked_for(opened: Any, table: Any) -> None:
    with opened(data=table, lmbda=0.0, max_staleness=1) as lessons:
        lessons.prepare(0)
        lessons._config.lmbda = 1.0
        assert [lessons.is_on_policy(step) for step in range(3)] == [False, False, True]
        assert lessons.lesson(2) is None  # it may still be decided otherwise
        taken = _take(lessons, range(4))
    assert [lesson.table.logprobs is not None for lesson, _ in taken] == [False, False, True, True]


def test_lmbda_needs_the_datas_answers(opened: Any, table: Any) -> None:
    with opened() as lessons, pytest.raises(ConfigError, match=r"lmbda=0\.5 needs answers"):
        lessons.check({"lmbda": 0.5})
    with opened(data=table, lmbda=0.5) as lessons:
        lessons.check({"lmbda": 0.2, "lr": 1e-3})
    with pytest.raises(ConfigError, match="this run is off-policy"):
        DataLessons(table, DistillConfig(), 1).check({"lmbda": 0.5})


def test_ring_slots_hold_what_comes(opened: Any, table: Any) -> None:
    for options in ({}, {"data": table, "lmbda": 0.5}, {"micro_batch_rows": 1}):
        with opened(**options) as lessons:
            for lesson, _ in _take(lessons, range(4)):
                for by_rank in lesson.plan.micro_batches:
                    rows = np.array(by_rank[0], np.int64)
                    assert len(rows) <= lessons.sizes.sequences
                    assert (lesson.table.lengths[rows] - 1).sum() <= lessons.sizes.tokens
                    assert lesson.table.response_lengths[rows].sum() <= lessons.sizes.rows


def test_sampling_is_what_was_asked_for(opened: Any, student: Student) -> None:
    asked = {"sampling_temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    with opened(**asked) as lessons:
        one, other = lessons.sampling(0), lessons.sampling(1)
    assert (one.temperature, one.top_p, one.top_k, one.min_p) == (0.7, 0.9, 20, 0.1)
    assert (one.max_new_tokens, one.n, one.vocab_size) == (NEW, 1, student.vocab_size)
    assert one.seed != other.seed
    torch.manual_seed(0)  # of the process: nothing depends on it
    with opened(**asked) as lessons:
        assert lessons.sampling(0).seed == one.seed


def test_a_step_has_several_micro_batches_for_the_teacher_to_read_ahead(opened: Any) -> None:
    with opened() as lessons:
        ((lesson, _),) = _take(lessons, range(1))
    parts = [rows for (rows,) in lesson.plan.micro_batches]
    assert len(parts) >= 2
    assert sorted(row for rows in parts for row in rows) == sorted(lesson.plan.rows)
    with opened(teacher_batches_per_phase=4) as lessons:  # by turns: nobody reads ahead
        ((lesson, _),) = _take(lessons, range(1))
    assert len(lesson.plan.micro_batches) == 1
