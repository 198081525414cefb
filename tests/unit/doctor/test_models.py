"""The doctor at models: heads, templates, what ends an answer. Real tokenizers, changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kdflow_lab import zoo
from kdflow_lab.doctor.findings import Finding
from kdflow_lab.doctor.models import Side, examine_models

OTHER_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|pad|>\\n' }}"
    "{% endfor %}"
)


def _side(name: str, folder: Path | None = None, tokenizer: Any = None) -> Side:
    path = folder or zoo.path(f"zoo/{name}")
    return Side.read(name, str(path), tokenizer or AutoTokenizer.from_pretrained(path))


def _copy(tmp_path: Path, **generation: Any) -> Path:
    """The zoo's student with another generation config."""
    folder = tmp_path / "student"
    shutil.copytree(zoo.path("zoo/student"), folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _found(teacher: Side, student: Side, **options: Any) -> dict[str, Finding]:
    asked = {"on_gpu": False, "teacher_dtype": "auto", **options}
    return {one.name: one for one in examine_models(teacher, student, **asked)}


def test_the_zoo_fits() -> None:
    found = _found(_side("teacher"), _side("student"))
    assert all(one.fits for one in found.values())
    assert found["conversation"].found == "both templates write the same"
    assert found["student stops at"].found == "<|im_end|>"


def test_a_turn_that_generation_would_not_stop_at(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("zoo/student"))
    tokenizer.chat_template = OTHER_END
    student = _side("student", _copy(tmp_path), tokenizer)
    finding = _found(_side("teacher"), student)["student stops at"]
    assert not finding.fits
    assert "<|pad|>" in finding.advice
    assert "generation_config.json" in finding.advice


def test_stop_ids_that_differ_or_are_never_written_or_cannot_be(tmp_path: Path) -> None:
    teacher = _side("teacher")
    eos = teacher.tokenizer.eos_token_id
    student = _side("student", _copy(tmp_path, eos_token_id=[eos, 0]))
    found = _found(teacher, student)
    never = student.spelled([0])
    assert never in found["student stops at"].advice
    assert f"only the student at {never}" in found["same stops"].found
    (tmp_path / "student" / "generation_config.json").write_text('{"eos_token_id": 5000}')
    finding = _found(teacher, student)["student stops at"]
    assert not finding.fits
    assert "no row 5000" in finding.advice


def test_nothing_to_stop_at_and_no_template(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.eos_token = None
    found = _found(_side("teacher"), _side("student", folder, tokenizer))
    assert not found["student stops at"].fits
    assert not found["conversation"].fits
    assert "the student" in found["conversation"].found
    assert "chat_template" in found["conversation"].advice


def test_templates_that_differ_are_shown_where_they_part() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("zoo/student"))
    tokenizer.chat_template = OTHER_END.replace("<|pad|>", "<|im_end|>").replace("m.role", "'x'")
    finding = _found(_side("teacher"), _side("student", tokenizer=tokenizer))["conversation"]
    assert finding.fits
    assert "<|im_start|>user" in finding.found and "<|im_start|>x" in finding.found


@pytest.mark.parametrize(("more", "fits", "words"), [(2, False, "lack"), (0, True, "")])
def test_ids_without_a_row_are_refused(more: int, fits: bool, words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("zoo/student"))
    tokenizer.add_tokens([f"<new-{number}>" for number in range(more)])
    finding = _found(_side("teacher"), _side("student", tokenizer=tokenizer))["heads"]
    assert finding.fits is fits
    assert words in finding.advice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_dtype": "float16"}, "overflow"),
        ({"teacher_dtype": "bfloat16"}, "slower"),
        ({"on_gpu": True}, ""),
    ],
)
def test_dtypes_are_named(options: dict[str, Any], words: str) -> None:
    finding = _found(_side("teacher"), _side("student"), **options)["dtype"]
    assert "teacher bfloat16" in finding.found
    assert words in finding.advice
