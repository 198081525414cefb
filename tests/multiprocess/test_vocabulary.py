"""Teacher and student whose vocabularies do not quite, or not at all, fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kdflow_lab as kd
from kdflow_lab.errors import RunError


def _student(folder: Path) -> tuple[Any, Any]:
    """Load the zoo's student and its tokenizer, to be changed and saved in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = kd.zoo.path("zoo/student")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(path), tokenizer


def test_padded_vocabulary_is_cut_and_that_is_said_once(tmp_path: Path) -> None:
    """As Qwen pads its heads: more rows than the tokenizer has ids."""
    folder = tmp_path / "padded"
    model, tokenizer = _student(folder)
    model.resize_token_embeddings(len(tokenizer) + 40)
    model.save_pretrained(folder)
    with kd.Lab("zoo/teacher", str(folder), threads=1, dir=str(tmp_path / "runs")) as lab:
        run = lab.distill(rows=32, steps=2, batch_size=8).wait()
        scores = lab.evaluate(rows=8, model=run, generate=False)
    said = [event["message"] for event in run.events if event["event"] == "warning"]
    assert len(said) == 1
    assert "1,064 (student)" in said[0]
    assert "1,024 ids" in said[0]
    assert scores.kl > 0
    assert run.student().get_output_embeddings().weight.shape[0] == len(tokenizer) + 40


def test_other_tokenizer_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    model, _ = _student(folder)
    model.save_pretrained(folder)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    file.write_text(json.dumps(description))
    with kd.Lab("zoo/teacher", str(folder), threads=1, dir=str(tmp_path / "runs")) as lab:
        with pytest.raises(RunError) as caught:
            lab.distill(rows=16, steps=1).wait(timeout=60)
        alone = lab.sft(rows=16, steps=1, batch_size=4).wait()
    assert "different tokenizers" in str(caught.value)
    assert "'A'" in str(caught.value) and "'B'" in str(caught.value)
    assert alone.state == "finished"
