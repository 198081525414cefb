"""What was written is kept in lines that everything can read; alarms are events."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdflow_lab.on_policy.alarms import WINDOW
from kdflow_lab.on_policy.journal import Journal
from kdflow_lab.on_policy.prompts import Prompts
from kdflow_lab.on_policy.watch import Seen
from kdflow_lab.rollout.sampling import Sample
from kdflow_lab.rundir import RunDirectory

TEXT = 'two "quoted" lines\nand é'


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create({})
    return made


@pytest.fixture
def journal(directory: RunDirectory, tokenizer: Any, prompts: Prompts) -> Journal:
    return Journal(directory, tokenizer, prompts, most=32, sampled=True, attempt=2)


def _lines(directory: RunDirectory) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = (directory.path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def _events(directory: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [event for event in directory.events() if event["event"] == name]


def _seen(samples: list[Sample], *, teacher_entropy: float = 0.5) -> Seen:
    """A look at the first samples, whose divergences count up; the first is not a number."""
    ids = np.concatenate([one.ids for one in samples]).astype(np.int64)
    kl = np.arange(len(ids), dtype=np.float32)
    kl[0] = math.nan
    some = np.full(len(ids), 0.7, np.float32)
    lengths = tuple(len(one.ids) for one in samples)
    return Seen(
        data_rows=tuple(range(len(samples))),
        lengths=lengths,
        ids=ids,
        kl=kl,
        student_entropy=some,
        student_logprob=-some,
        teacher_entropy=np.full_like(some, teacher_entropy),
        teacher_logprob=-some,
        teacher_lengths=lengths,
        teacher_width=1024,
        teacher_top=np.where(kl == 2, -1, ids),
        teacher_top_logprob=np.where(kl == 2, math.nan, -0.25).astype(np.float32),
        teacher_label_logprob=-some,
    )


def test_lines_hold_everything(
    directory: RunDirectory,
    journal: Journal,
    tokenizer: Any,
    prompts: Prompts,
    sample: Callable[..., Sample],
) -> None:
    ids = [*tokenizer.encode(TEXT, add_special_tokens=False), tokenizer.eos_token_id]
    samples = [
        sample(ids, version=2),
        sample(ids[:3], prompt=1, finished=False, version=1),
        sample(ids[:4], prompt=1, finished=False, version=1),
    ]
    written = [(4, samples[0]), (7, samples[1]), (7, samples[2])]
    rang = journal.step(3, written, _seen(samples[:2]), kd=0.5, logged=3)
    assert rang == []
    first, second, third = _lines(directory)
    assert first["schema"] == 1
    assert (first["step"], first["attempt"], first["version"]) == (3, 2, 2)
    assert first["row"] == int(prompts.student.row_index[4])
    assert first["prompt"] == tokenizer.decode(prompts.student.row(4)[0])
    assert first["text"] == TEXT
    assert first["ids"] == ids
    assert (first["finished"], second["finished"]) == (True, False)
    assert first["logprobs"] == samples[0].logprobs.tolist()
    assert first["kl"] == [None, *range(1, len(ids))]
    assert first["kl_mean"] == pytest.approx(np.mean(range(1, len(ids))), abs=1e-4)
    assert (first["kl_max"], first["length"]) == (len(ids) - 1, len(ids))
    assert "".join(first["tokens"][:-3]) == TEXT[:-1]  # the last character is two tokens
    assert first["teacher_ids"] == [one if at != 2 else None for at, one in enumerate(ids)]
    assert first["teacher_tokens"][1] == first["tokens"][1]
    assert first["teacher_tokens"][2] is None
    assert first["teacher_top_logprobs"][1:3] == [-0.25, None]
    assert first["teacher_logprobs"] == [-0.7] * len(ids)
    assert list(first)[: list(first).index("prompt")] == [
        *("schema", "step", "attempt", "version", "row", "length", "finished"),
        *("kl_mean", "kl_max"),
    ]
    assert second["kl"] == list(range(len(ids), len(ids) + 3))
    assert second["text"] == tokenizer.decode(ids[:3])
    assert third["kl"] is third["kl_mean"] is None  # nobody looked
    assert "teacher_ids" not in third
    assert "pinned" not in first


def test_as_many_lines_as_asked_for_those_that_were_looked_at_first(
    directory: RunDirectory, journal: Journal, sample: Callable[..., Sample]
) -> None:
    samples = [sample([5, 6], prompt=row) for row in range(4)]
    written = [(row, samples[row]) for row in range(4)]
    last_row = dataclasses.replace(_seen(samples[:1]), data_rows=(3,))
    journal.step(1, written, last_row, kd=0.5, logged=2)
    assert [line["row"] for line in _lines(directory)] == [3, 0]
    journal.step(2, written, last_row, kd=0.5, logged=0)
    assert len(_lines(directory)) == 2


def test_pinned_answers_are_marked(
    directory: RunDirectory, journal: Journal, sample: Callable[..., Sample]
) -> None:
    journal.pinned(8, [2, 5], [sample([5, 6]), sample([7], prompt=1)])
    lines = _lines(directory)
    assert [(line["step"], line["row"], line["pinned"]) for line in lines] == [
        (8, 2, True),
        (8, 5, True),
    ]
    assert [line["kl"] for line in lines] == [None, None]


def test_alarms_are_events_with_the_tokens_that_show_it(
    directory: RunDirectory, journal: Journal, tokenizer: Any, sample: Callable[..., Sample]
) -> None:
    ids = tokenizer.encode("the sun and the sea", add_special_tokens=False)
    samples = [sample([*ids, tokenizer.eos_token_id], prompt=row) for row in range(4)]
    written = list(enumerate(samples))
    seen = _seen(samples[:2], teacher_entropy=6.9)
    rang = [journal.step(step, written, seen, kd=0.5, logged=1) for step in range(1, WINDOW + 2)]
    assert rang == [[]] * (WINDOW - 1) + [["teacher_uniform"], []]
    (event,) = _events(directory, "alarm")
    assert (event["step"], event["kind"]) == (WINDOW, "teacher_uniform")
    assert event["ids"] == [*ids, tokenizer.eos_token_id]
    assert event["text"].startswith("the sun and the sea")
    assert "of at most 6.93 nats" in event["message"]

    journal.pause(["teacher_uniform"])
    command = json.loads(directory.control_file.read_text(encoding="utf-8"))
    assert command["command"] == "pause"
    assert "teacher_uniform" in command["by"]
