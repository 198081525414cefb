"""Evaluations on real engines: answers during a run, a table of models, metrics of a cell's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdflow_lab as kd
from kdflow_lab import answer_metrics
from kdflow_lab.errors import MetricError

ROWS = 24
TRAIN = {"data": "zoo/tasks", "rows": 64, "batch_size": 8, "lr": 1e-3, "steps": 4}
ASKED: dict[str, Any] = {"rows": ROWS, "max_new_tokens": 24}
CELL = """
BONUS = 0.5

def close(answer, row):
    return BONUS + len(set(answer) & set(row["answers"][0]))

def picky(answer, row):
    return 1 / (len(row["answers"]) - 1)
"""


@pytest.fixture(scope="module")
def cell() -> Iterator[dict[str, Any]]:
    """What a notebook's cell defines and registers; engines could not import it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(CELL, names)
    kd.register_metric("close")(names["close"])
    kd.register_metric("picky")(names["picky"])
    yield names
    for name in ("close", "picky"):
        answer_metrics.unregister(name)


@pytest.fixture(scope="module")
def held_out(lab: kd.Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of which the student, as it is before any step, answers a third right."""
    asked = {"split": "test", "rows": ROWS, "temperature": 0, "max_new_tokens": 24}
    rows = [dict(row) for row in lab.rollouts("zoo/tasks", **asked)]  # type: ignore[call-overload]
    file = tmp_path_factory.mktemp("held-out") / "rows.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows):
            own = row["messages"][-1]["content"]
            row["answers"] = [own] if number % 3 == 0 else row["answers"]
            row["messages"][-1]["content"] = row["answers"][0]
            lines.write(json.dumps(row) + "\n")
    return str(file)


@pytest.fixture(scope="module")
def run(lab: kd.Lab, held_out: str, cell: dict[str, Any]) -> kd.Run:
    """A run on two ranks that answers its held-out prompts."""
    return lab.distill(
        **TRAIN,
        eval_data=held_out,
        eval_every=2,
        eval_rows=ROWS,
        eval_max_new_tokens=24,
        eval_metrics=["close", "picky", "rouge_l"],
    ).wait()


@pytest.fixture(scope="module")
def table(lab: kd.Lab, run: kd.Run, held_out: str, cell: dict[str, Any]) -> kd.EvaluationTable:
    models = {"teacher": "teacher", "before": "student", "after": run}
    metric = [cell["close"], "rouge_l"]
    return lab.evaluate(held_out, model=models, **ASKED, metric=metric, against="before")


def _evaluated(run: kd.Run) -> list[dict[str, Any]]:
    return [event for event in run.events if event["event"] == "evaluated"]


def test_a_live_student_answers_as_its_checkpoint(run: kd.Run, table: kd.EvaluationTable) -> None:
    """FSDP2 on two ranks between two steps, and the plain model of the last checkpoint."""
    events = _evaluated(run)
    assert [event["step"] for event in events] == [0, 2, 4]
    for event, name in ((events[0], "before"), (events[-1], "after")):
        plain = table[name]
        assert event["answers"] == plain.rows == ROWS
        assert event["exact_match"] == pytest.approx(plain.exact_match)
        figures = plain.to_dict()
        assert event["metrics"]["close"] == pytest.approx(figures["close"])
        assert event["metrics"]["rouge_l"] == pytest.approx(figures["rouge_l"])
        for figure in ("kl", "agreement", "perplexity"):
            assert event[figure] == pytest.approx(figures[figure], rel=1e-5)
    assert events[0]["exact_match"] == pytest.approx(1 / 3, abs=0.05)
    assert events[-1]["exact_match"] < 1 / 3, "the student did not change: the test says nothing"


def test_a_metric_that_fails_is_a_warning_and_the_run_goes_on(run: kd.Run) -> None:
    assert run.state == "finished"
    assert all(event["metrics"]["picky"] is None for event in _evaluated(run))
    warnings = [event["message"] for event in run.events if event["event"] == "warning"]
    told = [text for text in warnings if "'picky'" in text]
    assert told and "ZeroDivisionError" in told[0] and "goes on without" in told[0]


def test_answering_changes_nothing(lab: kd.Lab, run: kd.Run) -> None:
    """Losses bit for bit those of a run that is not looked at."""
    alone = lab.distill(**TRAIN).wait()
    assert run.metrics["loss"].tolist() == alone.metrics["loss"].tolist()
    assert run.metrics["grad_norm"].tolist() == alone.metrics["grad_norm"].tolist()
    assert "exact_match" not in (_evaluated(alone) or [{}])[0]


def test_a_table_has_every_model_on_the_same_rows(table: kd.EvaluationTable) -> None:
    assert table.paired and table.against == "before"
    frame = table.frame.set_index(["model", "figure"])
    assert set(frame["rows"]) == {ROWS}
    assert frame.loc[("teacher", "kl"), "value"] == pytest.approx(0.0, abs=1e-5)
    assert frame.loc[("teacher", "agreement"), "difference_low"] > 0
    assert frame.loc[("after", "kl"), "difference_high"] < 0


def test_a_wrong_metric_keeps_what_was_computed(
    lab: kd.Lab, held_out: str, cell: dict[str, Any]
) -> None:
    with pytest.raises(MetricError, match=r"'picky' failed on row 0.*lab\.last_evaluation"):
        lab.evaluate(held_out, **ASKED, metric=cell["picky"])
    kept = lab.last_evaluation
    assert isinstance(kept, kd.Evaluation)
    assert kept.rows == ROWS and kept.judge("contains").to_dict()["contains"] >= kept.exact_match


def test_benchmarks_run_on_a_runs_student(run: kd.Run, tmp_path: Path) -> None:
    """The harness gets the run's weights: the same figures as of the exported folder."""
    pytest.importorskip("lm_eval")
    rows = [{"question": f"Sort: {n} 1", "choices": [f" 1 {n}", f" {n} 1"]} for n in range(2, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {
        "task": "zoo_sorting",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    asked: dict[str, Any] = {"tasks": "zoo_sorting", "include_path": tmp_path}
    ours = run.lm_eval(**asked)
    assert ours["metric"].tolist() == ["acc", "acc_norm"] and set(ours["rows"]) == {7}
    plain = kd.lm_eval(run.export(tmp_path / "model"), **asked)
    assert ours["value"].tolist() == plain["value"].tolist()
    assert list(kd.lm_eval(run.path, **asked)["value"]) == ours["value"].tolist()
