"""What makes two models one, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models as models

from kdflow_lab.errors import ModelError
from kdflow_lab.jobs import StudentPlace, TeacherInfo, TrainJob
from kdflow_lab.mean_teacher.one import check_one_model


def _job(folder: Path, tmp_path: Path, **changes: Any) -> TrainJob:
    """A student whose config is the teacher's but for some entries."""
    student = tmp_path / "student"
    shutil.copytree(folder, student)
    config = json.loads((folder / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | changes))
    teacher = TeacherInfo(str(folder), "transformers", "", 64, "float32", 0, {})
    place = StudentPlace(0, 1, "cpu", 1, None, "")
    return TrainJob(place, "", str(student), teacher, {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.write_model("llama", tmp_path / "teacher")


def test_dtype_ends_and_dropout_may_differ(folder: Path, tmp_path: Path) -> None:
    job = _job(folder, tmp_path, dtype="bfloat16", eos_token_id=9, attention_dropout=0.1)
    check_one_model(job, "")


def test_what_changes_hidden_states_is_named(folder: Path, tmp_path: Path) -> None:
    job = _job(folder, tmp_path, rms_norm_eps=0.5, num_hidden_layers=3)
    with pytest.raises(ModelError) as caught:
        check_one_model(job, "40 tokens only one has")
    text = str(caught.value)
    assert "num_hidden_layers is 2 in the teacher and 3 in the student" in text
    assert "rms_norm_eps is 1e-06 in the teacher and 0.5 in the student" in text
    assert "their tokenizers differ (40 tokens only one has)" in text
    assert "or leave teacher_update_every out" in text


def test_a_long_list_is_cut(folder: Path, tmp_path: Path) -> None:
    changes = {"rms_norm_eps": 0.5, "num_hidden_layers": 3, "vocab_size": 7, "hidden_act": "relu"}
    with pytest.raises(ModelError, match="and 1 more"):
        check_one_model(_job(folder, tmp_path, **changes), "")
