"""What SGLang cannot do is said in one sentence, within seconds, and costs nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models as models

from kdflow_lab.errors import ConfigError, ModelError
from kdflow_lab.teacher import make_teacher

SOON_S = 240.0
"""A start that fails takes as long as a start: 8 s here, far more on a machine with other work."""


def _fails(kind: type[Exception], folder: Path, **sglang: Any) -> str:
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        make_teacher("sglang", str(folder), threads=1, sglang=sglang)
    assert time.monotonic() - start < SOON_S
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model("llama", tmp_path_factory.mktemp("model"))


def test_a_row_that_is_too_long_fails_alone(subject: Any, slots: Any) -> None:
    if subject.teacher.backend != "sglang":
        pytest.skip("transformers takes rows of any length")
    named = r"Row 1 of micro-batch 0 in step \d+ of student 0 has 300 tokens, .* max_length"
    with pytest.raises(ModelError, match=named):
        subject.teacher.fill([slots.request(models.sequences((3, 300)))])
    subject.teacher.fill([slots.request(models.sequences((3,)))])


def test_weights_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    text = _fails(ModelError, tmp_path)
    assert "SGLang cannot start this teacher" in text
    assert str(tmp_path) in text or "safetensors" in text


def test_a_model_that_sglang_does_not_know(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NoSuchForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert "NoSuchForCausalLM" in _fails(ModelError, tmp_path)


def test_too_little_memory(folder: Path) -> None:
    text = _fails(ModelError, folder, mem_fraction=1e-6)
    assert "memory" in text.lower()


def test_a_context_that_the_model_does_not_have(folder: Path) -> None:
    text = _fails(ModelError, folder, context_length=4 * models.CONTEXT)
    assert "context" in text
    assert str(models.CONTEXT) in text


def test_a_misspelt_argument(folder: Path) -> None:
    text = _fails(ConfigError, folder, engine_args={"chunked_prefil_size": 8})
    assert "Did you mean 'chunked_prefill_size'" in text
