"""Whole plans of the zoo and of what a run may be, and how they show themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kdflow_lab.cli import main
from kdflow_lab.config import LabConfig
from kdflow_lab.errors import ConfigError
from kdflow_lab.lab import Lab
from kdflow_lab.plan import learnt, make, predict
from kdflow_lab.plan.make import Basis, make_plan
from kdflow_lab.plan.report import Plan

OPTIONS: dict[str, Any] = {"rows": 300, "steps": 20}


def _plan(lab: LabConfig, **options: Any) -> Plan:
    return make_plan(lab, {**OPTIONS, **options})


def _total(plan: Plan, name: str) -> float:
    return sum(one.total for one in plan.prediction.processes if one.name == name)


def test_the_zoo_fits_and_says_so(lab_config: LabConfig) -> None:
    plan = _plan(lab_config)
    assert plan.fits
    assert [one.name for one in plan.prediction.processes] == [
        *("supervisor", "controller", "teacher", "student 0")
    ]
    assert plan.peak_bytes["host"] == sum(one.total for one in plan.prediction.processes)
    assert plan.step_s > 0
    assert plan.total_s == pytest.approx(20 * plan.step_s)
    assert str(plan).startswith("fits: a first guess")
    assert json.loads(json.dumps(plan.as_dict()))["devices"]["host"]["fits"]
    assert plan.remedies == ()


def test_the_disk_is_that_of_the_checkpoints(lab_config: LabConfig, basis: Basis) -> None:
    plan = _plan(lab_config, keep_last=3)
    one = 12 * basis.setting.student.parameters
    assert plan.prediction.checkpoint_bytes == one
    assert plan.rooms[-1].needed == 4 * one
    cached = _plan(lab_config, keep_last=3, cache=True)
    assert cached.rooms[-1].needed > plan.rooms[-1].needed


def test_every_kind_of_run_has_a_plan(lab_config: LabConfig) -> None:
    sft = _plan(lab_config, algorithm="sft")
    assert sft.prediction.time.teacher_s == 0
    assert _total(sft, "teacher") > 0  # the lab's teacher is loaded all the same
    written = _plan(lab_config, on_policy=True, max_new_tokens=32)
    assert _total(written, "rollout") > 0
    assert written.prediction.time.rollout_s > 0
    assert any("32 tokens" in note for note in written.notes)
    adapted = _plan(lab_config, lora_r=4)
    assert adapted.prediction.checkpoint_bytes < 0.5 * sft.prediction.checkpoint_bytes
    evaluated = _plan(lab_config, eval_every=5)
    parts = evaluated.prediction.processes[-1].parts
    assert parts["held-out rows"] > 0


def test_two_tokenizers_and_two_students(lab_config: LabConfig) -> None:
    other = lab_config.model_copy(update={"student": "zoo/student-unigram", "students": 2})
    plan = _plan(other)
    assert [one.name for one in plan.prediction.processes][-2:] == ["student 0", "student 1"]
    work = plan.prediction.work
    assert work.tokens != work.teacher_tokens


def test_gpus_are_planned_without_one(lab_config: LabConfig) -> None:
    lab = lab_config.model_copy(update={"device": "cuda", "students": 2})
    plan = _plan(lab)
    assert set(plan.peak_bytes) == {"host", "cuda:0", "cuda:1"}
    assert plan.peak_bytes["cuda:0"] > plan.peak_bytes["cuda:1"]  # the teacher is there, too
    assert any("not measured" in note for note in plan.notes)


def test_what_does_not_fit_says_what_would(
    lab_config: LabConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = _plan(lab_config).peak_bytes["host"]
    monkeypatch.setattr(predict.devices, "free_host", lambda _: needed - 5e6)
    plan = _plan(lab_config)
    assert not plan.fits
    assert plan.remedies
    for remedy in plan.remedies:
        assert not remedy.lab
        again = _plan(lab_config, **remedy.run)
        assert again.fits, remedy
    assert f"would fit: {plan.remedies[0]} (host " in str(plan)
    assert "does not fit" in plan._repr_html_()
    monkeypatch.setattr(predict.devices, "free_host", lambda _: 1e6)
    assert "smaller models" in str(_plan(lab_config))


def test_earlier_runs_correct_it(lab_config: LabConfig, tmp_path: Path) -> None:
    lab = lab_config.model_copy(update={"dir": str(tmp_path)})
    first = _plan(lab)
    learnt.remember(
        tmp_path, "run", {"key": "cpu transformers", "memory": {"student": 1.5}, "time": 2.0}
    )
    second = _plan(lab)
    assert _total(second, "student 0") == pytest.approx(1.5 * _total(first, "student 0"))
    assert _total(second, "teacher") == _total(first, "teacher")
    assert second.step_s == pytest.approx(2 * first.step_s)
    assert "corrected by 1 run" in str(second)
    (tmp_path / learnt.FILE).write_text('{"schema"')
    assert "what it had learnt is lost" in str(_plan(lab))


def test_the_same_data_is_read_once(lab_config: LabConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _plan(lab_config, split="validation")
    monkeypatch.setattr(make, "read_lengths", lambda *_: pytest.fail("it was read again"))
    _plan(lab_config, split="validation", micro_batch_tokens=4096)


def test_wrong_options_are_refused_with_the_nearest(tmp_path: Path) -> None:
    lab = Lab("zoo/teacher", "zoo/student", dir=str(tmp_path))
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        lab.plan(batchsize=3)
    with pytest.raises(ConfigError, match="reverse_kl"):
        lab.plan(loss="reverse_lk")


def test_the_picture_is_well_formed_and_names_every_process(lab_config: LabConfig) -> None:
    plan = _plan(lab_config, on_policy=True)
    text = plan._repr_html_()
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    words = [one.text for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("teacher", "student 0", "rollout"):
        assert name in words
    bars = [
        one for one in svg.iter("{http://www.w3.org/2000/svg}rect") if len(one)
    ]  # those with a title
    assert all(float(one.attrib["width"]) > 0 for one in bars)
    assert len(bars) > 5


def test_the_shell_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"plan --teacher zoo/teacher --student zoo/student --dir {tmp_path} --rows 100 --steps 3"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert "student 0" in said
    assert "3 steps" in said
