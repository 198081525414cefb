"""The transformers teacher takes weights in place, looks at itself, and becomes its own again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models as models
import torch
from slots import Slots

from kdflow_lab.errors import ModelError, TransportError
from kdflow_lab.load import load_model
from kdflow_lab.losses import Head
from kdflow_lab.rollout.weights import entries_of, write
from kdflow_lab.teacher.transformers import TransformersTeacher
from kdflow_lab.transport.segment import NO_VERSION, WeightSegment

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3"]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return models.write_model(request.param, tmp_path / "model")


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Path:
    """The same model with other weights."""
    model = load_model(str(folder))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "changed")
    return tmp_path / "changed"


@pytest.fixture
def segment(changed: Path) -> Iterator[WeightSegment]:
    """The other weights, version 4."""
    model: Any = load_model(str(changed))
    made = WeightSegment.create(entries_of(model, torch.float32))
    write(model, made, dtype=torch.float32, version=4)
    yield made
    made.close()


def _rows(teacher: TransformersTeacher) -> torch.Tensor:
    slots = Slots(teacher)
    request = slots.request(models.sequences())
    teacher.fill([request])
    rows = slots.rows(request).clone()
    slots.close()
    return rows


def test_the_rows_are_those_of_the_weights_and_then_its_own_again(
    folder: Path, changed: Path, segment: WeightSegment
) -> None:
    teacher = TransformersTeacher(str(folder))
    own = _rows(teacher)
    teacher.weights(WeightSegment.attach(os.dup(segment.fd)))
    assert torch.equal(_rows(teacher), own)  # nothing is loaded yet
    drift = teacher.load(4)
    assert teacher.version == 4
    assert drift["tokens"] == 124 and drift["largest"] < 1e-4
    want = torch.cat(models.expected(changed, models.sequences(), torch.float32))
    torch.testing.assert_close(_rows(teacher), want, rtol=1e-4, atol=1e-4)
    assert (want - own).abs().max() > 0.05
    # on a CPU the decoder's parameters are the segment itself, and the head is nobody's
    theirs = segment.view(segment.entries[0], 0)
    theirs.view(-1)[0] = 7.0
    names = dict(teacher._model.named_parameters())
    assert names[segment.entries[0].name].view(-1)[0] == 7.0
    teacher.restore()
    assert teacher.version == NO_VERSION
    assert torch.equal(_rows(teacher), own)
    teacher.restore()  # nothing to do


def test_a_head_of_its_own_is_not_kept(tmp_path: Path) -> None:
    teacher = TransformersTeacher(str(models.write_model("llama", tmp_path / "untied")))
    assert teacher._model.lm_head.weight.device.type == "meta"
    tied = TransformersTeacher(str(models.write_model("qwen3", tmp_path / "tied")))
    assert tied._model.lm_head.weight is tied._model.model.embed_tokens.weight


def test_the_head_among_tensors_is_that_of_the_files(changed: Path, segment: WeightSegment) -> None:
    found = Head.among(segment.views(0), changed, dtype=torch.float32)
    want = Head.from_pretrained(changed, dtype=torch.float32)
    assert torch.equal(found.weight, want.weight)
    assert (found.logit_scale, found.soft_cap) == (want.logit_scale, want.soft_cap)
    with pytest.raises(ModelError, match="No head among 0 tensors"):
        Head.among({}, changed, dtype=torch.float32)


def test_a_drifted_teacher_is_refused(folder: Path, segment: WeightSegment) -> None:
    teacher = TransformersTeacher(str(folder))
    teacher.weights(WeightSegment.attach(os.dup(segment.fd)))
    with pytest.raises(TransportError, match="holds version 4, expected 5"):
        teacher.load(5)
    broken = segment.view(segment.entries[-1], 0)
    whole = broken.clone()
    broken.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"do not fit its head: .* differ .* by nan nats"):
        teacher.load(4)
    assert teacher.version == NO_VERSION
    broken.copy_(whole)
    teacher.load(4)


def test_the_canary_sees_another_head(tmp_path: Path) -> None:
    """A head that students did not renew is far off."""
    folder = models.write_model("llama", tmp_path / "model")
    teacher = TransformersTeacher(str(folder))
    model: Any = load_model(str(folder))
    made = WeightSegment.create(entries_of(model, torch.float32))
    old = Head.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.add_(0.05 * torch.randn_like(model.lm_head.weight))
    write(model, made, dtype=torch.float32, version=1)
    teacher.weights(WeightSegment.attach(os.dup(made.fd)))
    teacher.load(1)
    teacher._model.lm_head.weight = model.lm_head.weight
    with pytest.raises(ModelError, match="do not fit its head"):
        teacher.check(old)
    made.close()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    teacher = TransformersTeacher(str(models.write_model("qwen3", tmp_path / "qwen3")))
    other: Any = load_model(str(models.write_model("llama", tmp_path / "llama")))
    made = WeightSegment.create(entries_of(other, torch.float32))
    with pytest.raises(ModelError, match=r"q_norm\.weight is not among them"):
        teacher.weights(WeightSegment.attach(made.fd))
    own: Any = load_model(str(tmp_path / "qwen3"))
    made = WeightSegment.create(entries_of(own, torch.bfloat16))
    with pytest.raises(ModelError, match=r"computes in torch\.float32, but was given"):
        teacher.weights(WeightSegment.attach(made.fd))
    with pytest.raises(ModelError, match="No weights were handed over"):
        teacher.load(1)
