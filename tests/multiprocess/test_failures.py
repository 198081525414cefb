"""Bad input: said clearly, before it costs anything, and the lab goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kdflow_lab as kd
from kdflow_lab.errors import ConfigError, ModelError, RunError


def _failure(run: kd.Run) -> str:
    with pytest.raises(RunError) as caught:
        run.wait(timeout=60)
    assert run.state == "failed"
    return str(caught.value)


def test_malformed_rows_stop_the_run_before_it_starts(lab: kd.Lab, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"prompt": "Reverse: a b c", "response": "Reversed: c b a"}
    lines = [json.dumps(good), "{broken", json.dumps({**good, "response": ""}), json.dumps(good)]
    file.write_text("\n".join(lines))
    message = _failure(lab.distill(data=str(file), steps=1, batch_size=2))
    assert "rows.jsonl:2" in message
    assert "rows.jsonl:3" in message
    assert "on_bad_rows" in message

    skipped = lab.distill(data=str(file), steps=1, batch_size=2, on_bad_rows="skip").wait()
    data = next(event for event in skipped.events if event["event"] == "data")
    assert (data["kept"], data["skipped"]) == (2, 2)


def test_missing_data_is_one_sentence_and_the_lab_goes_on(lab: kd.Lab) -> None:
    message = _failure(lab.distill(data="./no-such-file.jsonl", steps=1))
    assert "no-such-file" in message
    assert lab.sft(rows=16, steps=1, batch_size=4).wait().state == "finished"


def test_model_that_cannot_be_loaded_is_said_before_engines_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'zoo/teacher'"):
        kd.Lab("zoo/techer", "zoo/student", dir=str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    lab = kd.Lab(str(broken), "zoo/student", threads=1, dir=str(tmp_path / "runs"))
    with pytest.raises(ModelError, match="broken"):
        lab.up()
    assert lab.status().state == "down"
