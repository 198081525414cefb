"""What the student holds is what lies in the segment: every parameter once, adapters merged."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import rollout_engine
import tiny_models as models
import torch
from tiny_lora import adapted
from torch import nn

from kdflow_lab.errors import ModelError, TransportError
from kdflow_lab.load import load_model
from kdflow_lab.rollout.sampling import Sampling
from kdflow_lab.rollout.transformers import TransformersRollout
from kdflow_lab.rollout.weights import entries_of, sources, write
from kdflow_lab.transport.segment import NO_VERSION, WeightSegment, laid_out


@pytest.fixture(params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return models.write_model(request.param, tmp_path / "model")


def _changed(folder: Path) -> Any:
    model = load_model(str(folder)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _handed_over(student: Any, folder: Path, **options: Any) -> TransformersRollout:
    """A rollout backend with the student's weights, version 9."""
    backend = TransformersRollout(str(folder), **options)
    made = WeightSegment.create(entries_of(student, backend.dtype))
    write(student, made, dtype=backend.dtype, version=9, bucket_bytes=1000)
    backend.weights(WeightSegment.attach(os.dup(made.fd)))
    made.close()
    backend.load(9, 0)
    return backend


def _apart(student: Any, backend: TransformersRollout) -> float:
    """How far log-probabilities of sampled answers are from the student's own, in nats."""
    prompts = [ids.numpy() for ids in models.sequences((3, 20))]
    samples = backend.generate(prompts, Sampling(max_new_tokens=20, n=2))
    return rollout_engine.apart(student, prompts, samples)


def test_a_student_is_handed_over_whole(folder: Path) -> None:
    student = _changed(folder)
    backend = _handed_over(student, folder)
    assert _apart(student, backend) < 1e-5
    assert backend.version == 9


def test_parameters_are_the_segment_and_tied_ones_come_once(folder: Path) -> None:
    student = _changed(folder)
    entries = entries_of(student, torch.float32)
    tied = student.config.tie_word_embeddings
    assert ("lm_head.weight" in [entry.name for entry in entries]) == (not tied)
    backend = _handed_over(student, folder)
    assert (backend._model.lm_head.weight is backend._model.model.embed_tokens.weight) == tied
    segment = backend._segment
    assert segment is not None
    views = segment.views(0)
    for name, parameter in backend._model.named_parameters():
        assert parameter.data_ptr() == views[name].data_ptr(), name


def test_what_is_cast_is_what_the_student_would_compute_with(folder: Path) -> None:
    student = _changed(folder)
    backend = _handed_over(student, folder, dtype="bfloat16")
    rounded = student.bfloat16()
    for name, parameter in backend._model.named_parameters():
        assert torch.equal(parameter, rounded.get_parameter(name)), name


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_adapters_are_merged_also_on_a_tied_head(folder: Path) -> None:
    student = adapted(_changed(folder)).eval()
    backend = _handed_over(student, folder)
    assert not [one for one in sources(student) if "lora" in one.name or "base" in one.name]
    assert _apart(student, backend) < 1e-4


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_a_tied_head_is_tied_again_for_a_run_that_does_not_adapt_it(folder: Path) -> None:
    backend = _handed_over(adapted(_changed(folder)).eval(), folder)
    assert backend._model.lm_head.weight is not backend._model.model.embed_tokens.weight
    student = _changed(folder)
    made = WeightSegment.create(entries_of(student, backend.dtype))
    write(student, made, dtype=backend.dtype, version=1)
    backend.weights(made)
    backend.load(1, 0)
    tied = student.config.tie_word_embeddings
    assert (backend._model.lm_head.weight is backend._model.model.embed_tokens.weight) == tied
    assert _apart(student, backend) < 1e-5


def test_adapters_that_cannot_be_merged_are_refused(folder: Path) -> None:
    student = adapted(_changed(folder))
    student.lm_head.fan_in_fan_out = True
    with pytest.raises(ModelError, match="lm_head is adapted"):
        sources(student)


def test_names_of_peft_and_modules_beside_are_not_in_it(folder: Path) -> None:
    student = _changed(folder)
    plain = [source.name for source in sources(student)]

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = student

    assert [source.name for source in sources(Wrapper())] == plain
    student.add_module("beside", nn.Linear(3, 3))
    assert [source.name for source in sources(student)] == plain


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    llama = models.write_model("llama", tmp_path / "llama")
    qwen = models.write_model("qwen3", tmp_path / "qwen3")
    with pytest.raises(ModelError, match="do not fit"):
        _handed_over(load_model(str(llama)), qwen)
    with pytest.raises(ModelError, match="do not fit"):
        _handed_over(load_model(str(qwen)), llama)


def test_a_half_written_buffer_is_refused(folder: Path) -> None:
    backend = _handed_over(_changed(folder), folder)
    segment = backend._segment
    assert segment is not None
    segment.stamp(0, NO_VERSION)
    with pytest.raises(TransportError, match="while it was read"):
        backend.load(9, 0)
    with pytest.raises(TransportError, match="buffer 1"):
        backend.load(9, 1)


def test_the_segment_has_no_name_and_cannot_shrink() -> None:
    segment = WeightSegment.create(laid_out([("w", (3, 5))], torch.float32), buffers=2)
    assert [segment.version(buffer) for buffer in range(2)] == [NO_VERSION] * 2
    status = os.fstat(segment.fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(segment.fd, 10)
    for buffer in range(2):
        segment.view(segment.entries[0], buffer).fill_(buffer + 1)
    other = WeightSegment.attach(os.dup(segment.fd))
    held = other.views(1)["w"]
    other.close()
    segment.close()
    assert held.tolist() == [[2.0] * 5] * 3  # lives as long as it is looked at


def test_what_is_no_segment_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(bytes(4096))
        file.flush()
        with pytest.raises(TransportError, match="not sealed"):
            WeightSegment.attach(os.dup(file.fileno()))
    with pytest.raises(TransportError, match="available"):
        WeightSegment.create(laid_out([("w", (1 << 40,))], torch.float32))
