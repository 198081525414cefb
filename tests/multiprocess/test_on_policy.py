"""On-policy runs on real engines: whose tokens are learnt from, when, and what rings the alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from faults import SMALL, events, fails_soon, same, send, state, training, wait_for
from faults import whole as assert_whole

import kdflow_lab as kd
from kdflow_lab.jsonl import JsonlTail

STEPS = 14
ON_POLICY: dict[str, Any] = {
    **SMALL,
    "on_policy": True,
    "loss": "reverse_kl",
    "kd_ratio": 1.0,
    "max_new_tokens": 8,
    "log_rollouts": 8,
    "checkpoint_every": 5,
}


def _rollouts(run: kd.Run, *, pinned: bool = False) -> list[dict[str, Any]]:
    """Answers of the last attempt of each step, in order."""
    lines = JsonlTail(run.path / "rollouts.jsonl").read()
    last = {line["step"]: line["attempt"] for line in lines}
    return [
        line
        for line in lines
        if bool(line.get("pinned")) is pinned and line["attempt"] == last[line["step"]]
    ]


def _column(run: kd.Run, name: str) -> list[Any]:
    return [record.get(name) for record in run.records]


def _kinds(run: kd.Run) -> set[str]:
    return {event["kind"] for event in events(run, "alarm")}


@pytest.fixture(scope="module")
def strict(lab: kd.Lab) -> kd.Run:
    """Strictly on-policy, on two students; nobody disturbs it."""
    return lab.distill(**ON_POLICY, steps=STEPS).wait(120)


# -- whose tokens are learnt from ---------------------------------------------------------------


def test_every_step_learns_from_what_its_own_weights_wrote(strict: kd.Run) -> None:
    assert_whole(strict)
    assert _column(strict, "staleness") == [0] * STEPS
    lines = _rollouts(strict)
    assert [line["step"] for line in lines] == [s for s in range(1, STEPS + 1) for _ in range(8)]
    assert all(line["version"] == line["step"] - 1 for line in lines)
    assert [len(event["ranks"]) for event in events(strict, "started")] == [2]


def test_the_sampled_ids_are_trained_and_the_student_finds_them_as_likely(strict: kd.Run) -> None:
    """All answers are logged: the step's own cross-entropy is minus the mean of the log's."""
    for record in strict.records:
        lines = [line for line in _rollouts(strict) if line["step"] == record["step"]]
        logprobs = [value for line in lines for value in line["logprobs"]]
        assert record["tokens"] == len(logprobs) == sum(len(line["ids"]) for line in lines)
        assert record["ce"] == pytest.approx(-np.mean(logprobs), abs=1e-4)
        assert record["answer_tokens"] == pytest.approx(len(logprobs) / 8)
        assert record["truncated"] == np.mean([not line["finished"] for line in lines])


def test_lines_are_read_as_they_were_written(strict: kd.Run) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kd.zoo.path("zoo/student"))
    looked = 0
    for line in _rollouts(strict):
        end = [tokenizer.eos_token_id] if line["finished"] else []
        assert line["ids"][-1:] == end or (len(line["ids"]) == 8 and not line["finished"])
        assert tokenizer.decode(line["ids"]) == line["text"] + tokenizer.decode(end)
        assert line["prompt"].endswith("<|im_start|>assistant\n")
        if line["kl"] is not None:
            looked += 1
            assert len(line["kl"]) == len(line["ids"])
            assert min(line["kl"]) > -1e-4
            tops, own = (line[f"teacher_{name}logprobs"] for name in ("top_", ""))
            for at, (token, top) in enumerate(zip(line["ids"], line["teacher_ids"], strict=True)):
                assert tops[at] == own[at] if token == top else tops[at] >= own[at]
            assert len(line["tokens"]) == len(line["teacher_tokens"]) == line["length"]
            assert line["kl_max"] == max(line["kl"])
    assert looked >= STEPS


def test_pinned_prompts_are_answered_at_every_checkpoint(strict: kd.Run) -> None:
    lines = _rollouts(strict, pinned=True)
    assert [line["step"] for line in lines] == [s for s in (5, 10, STEPS) for _ in range(4)]
    assert all(line["version"] == line["step"] for line in lines)
    assert [line["row"] for line in lines] == [line["row"] for line in lines[:4]] * 3


def test_one_step_stale_is_never_more(lab: kd.Lab) -> None:
    run = lab.distill(**ON_POLICY, steps=8, max_staleness=1).wait(120)
    assert _column(run, "staleness") == [0] + [1] * 7
    lines = _rollouts(run)
    assert all(line["version"] == max(0, line["step"] - 2) for line in lines)
    assert_whole(run)


def test_the_datas_own_answers_change_nothing(lab: kd.Lab, strict: kd.Run) -> None:
    rows: Any = kd.zoo.dataset("zoo/tasks", rows=ON_POLICY["rows"], seed=42)
    other = [
        {"messages": [*row["messages"][:-1], {"role": "assistant", "content": "No idea."}]}
        for row in rows
    ]
    run = lab.distill(**{**ON_POLICY, "data": other}, steps=4).wait(120)
    for name in ("loss", "kd", "grad_norm", "tokens"):
        assert _column(run, name) == _column(strict, name)[:4]


def test_lmbda_mixes_in_the_datas_answers(lab: kd.Lab) -> None:
    run = lab.distill(**ON_POLICY, steps=8, lmbda=0.5).wait(120)
    own = [record["step"] for record in run.records if "answer_tokens" in record]
    assert 0 < len(own) < 8
    assert {line["step"] for line in _rollouts(run)} == set(own)
    assert_whole(run)


def test_lmbda_cannot_be_set_where_the_datas_answers_were_not_read(lab: kd.Lab) -> None:
    run = training(lab, **ON_POLICY, at=1)
    run.set(lmbda=0.5)
    (said,) = wait_for(lambda: events(run, "warning"))
    assert "lmbda=0.5 needs answers of the data" in said["message"]
    run.stop()
    state(run, "stopped")


def test_the_policy_gradient_learns_the_same_from_sampled_tokens(
    lab: kd.Lab, strict: kd.Run
) -> None:
    run = lab.distill(**{**ON_POLICY, "loss": "forward_kl"}, algorithm="policy_gradient", steps=4)
    run.wait(120)
    assert _column(run, "clipped") == [0.0] * 4
    first = run.records[0]
    assert first["ce"] == strict.records[0]["ce"]  # the same answers
    # one sample of each position stands for the whole vocabulary
    assert first["kd"] == pytest.approx(strict.records[0]["kd"], rel=0.5)
    assert first["loss"] == pytest.approx(first["kd"], abs=1e-4)
    assert_whole(run)


# -- what is disturbed goes on the same -----------------------------------------------------------


def test_a_killed_student_resumes_the_same_stream_bit_for_bit(lab: kd.Lab, strict: kd.Run) -> None:
    run = training(lab, **ON_POLICY, steps=STEPS, at=6)
    send(lab, "student 1")
    fails_soon(run)
    run.resume().wait(120)
    assert [event["from_step"] for event in events(run, "started")][1:] == [5]
    same(run, strict)
    assert_whole(run)
    names = ("step", "row", "ids", "version", "finished")
    ours, theirs = (
        [[line[name] for name in names] for line in _rollouts(one)] for one in (run, strict)
    )
    assert ours == theirs


def test_a_killed_rollout_engine_costs_no_step(lab: kd.Lab, strict: kd.Run) -> None:
    run = training(lab, **ON_POLICY, steps=STEPS, at=3)
    send(lab, "rollout")
    run.wait(120)
    assert [len(events(run, f"worker_{what}")) for what in ("lost", "back")] == [1, 1]
    assert len(events(run, "started")) == 1
    same(run, strict)
    assert_whole(run)


# -- alarms --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A teacher that knows nothing, and a student whose files name a wrong stop id."""
    folder = tmp_path_factory.mktemp("broken")
    teacher = planted.uniform("zoo/teacher", folder / "teacher")
    student = planted.with_wrong_stop_id("zoo/teacher", folder / "student")
    with kd.Lab(teacher, student, threads=1, dir=str(folder / "runs")) as made:
        yield made


@pytest.fixture(scope="module")
def ends_otherwise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A student that ends its answers with another token than its teacher."""
    folder = tmp_path_factory.mktemp("ends")
    student = planted.ending_otherwise("zoo/teacher", folder / "student")
    with kd.Lab("zoo/teacher", student, threads=1, dir=str(folder / "runs")) as made:
        yield made


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A teacher that is its own student."""
    folder = tmp_path_factory.mktemp("itself")
    with kd.Lab("zoo/teacher", "zoo/teacher", threads=1, dir=str(folder)) as made:
        yield made


WATCHED = {**ON_POLICY, "lr": 1e-6, "max_new_tokens": 24, "steps": 5, "checkpoint_every": 1000}


def test_collapses_ring_and_pause_the_run(broken: kd.Lab) -> None:
    run = broken.distill(**WATCHED, on_alarm="pause")
    state(run, "paused", seconds=120)
    assert run.step == 4  # a whole window
    assert {"never_stops", "truncated", "teacher_uniform"} <= _kinds(run)
    assert "stop_ids" not in _kinds(run)
    for event in events(run, "alarm"):
        assert event["step"] == 4
        assert len(event["ids"]) > 0 and event["text"]
    (paused,) = events(run, "paused")
    assert "never_stops" in paused["by"]
    run.resume()
    run.wait(120)
    assert run.state == "finished"  # it is said once in a while
    assert len(events(run, "paused")) == 1


def test_another_stop_id_than_the_teachers_rings(ends_otherwise: kd.Lab) -> None:
    run = ends_otherwise.distill(**WATCHED).wait(120)
    assert _kinds(run) == {"stop_ids"}
    (event,) = events(run, "alarm")
    assert event["text"].endswith(planted.OTHER_END)
    assert run.state == "finished"


def test_a_healthy_run_rings_nothing_and_a_teacher_agrees_with_itself(itself: kd.Lab) -> None:
    run = itself.distill(**{**WATCHED, "steps": 8, "kd_ratio": 0.5}, on_alarm="pause").wait(120)
    assert run.state == "finished"
    assert events(run, "alarm") == []
    assert max(_column(run, "kd")) < 1e-4
    assert min(_column(run, "agreement")) > 0.99


# -- self-distillation, and two tokenizers ---------------------------------------------------------


def test_a_model_learns_from_itself_with_a_hint(itself: kd.Lab) -> None:
    """Context distillation: what the teacher answers with the hint is learnt without it."""
    rows: Any = kd.zoo.dataset("zoo/tasks", rows=16, seed=1)
    data = [
        {
            "messages": row["messages"][:1],  # no answers
            "hint": [*row["messages"], {"role": "user", "content": "Say that again."}],
        }
        for row in rows
    ]
    options = {**ON_POLICY, "data": data, "rows": None, "teacher_input": "hint", "lr": 1e-4}
    run = itself.distill(**options, steps=6).wait(120)
    assert min(_column(run, "kd")) > 0.01  # it reads another prompt
    assert_whole(run)
    lines = _rollouts(run)
    assert not any("Say that again" in line["prompt"] for line in lines)


def test_two_tokenizers(tmp_path: Path) -> None:
    lab = kd.Lab("zoo/teacher", "zoo/student-unigram", threads=1, dir=str(tmp_path))
    with lab:
        run = lab.distill(**ON_POLICY, steps=4).wait(120)
    assert _column(run, "staleness") == [0] * 4
    # the others begin in one of the teacher's tokens and end in the next
    assert np.mean(_column(run, "aligned")) > 0.8
    assert events(run, "started")[0]["algorithm"] == "byte_prefix"
    assert all(len(line["kl"]) == len(line["ids"]) for line in _rollouts(run) if line["kl"])
    assert_whole(run)
