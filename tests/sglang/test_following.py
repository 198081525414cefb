"""Every backend takes a student's weights in place, and is the model of its folder again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models as models
import torch

from kdflow_lab.errors import ConfigError, ModelError, TransportError
from kdflow_lab.load import load_model
from kdflow_lab.rollout.weights import entries_of, write
from kdflow_lab.transport.segment import NO_VERSION, WeightSegment

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def changed(subject: Any, tmp_path: Path) -> Path:
    """The subject's model with other weights."""
    model = load_model(str(subject.folder), dtype=subject.dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            change = 0.05 * torch.randn(tuple(parameter.shape), generator=generator)
            parameter.add_(change.to(subject.dtype))
    model.save_pretrained(tmp_path / "changed")
    return tmp_path / "changed"


@pytest.fixture
def segment(changed: Path, subject: Any) -> Iterator[WeightSegment]:
    """The other weights, version 4."""
    model: Any = load_model(str(changed), dtype=subject.dtype)
    made = WeightSegment.create(entries_of(model, subject.dtype))
    write(model, made, dtype=subject.dtype, version=4)
    yield made
    made.close()


def _rows(subject: Any, slots: Any) -> torch.Tensor:
    request = slots.request(models.sequences((2, 7, 100)))
    subject.teacher.fill([request])
    return slots.rows(request).clone()


def test_rows_follow_the_weights_and_come_back(
    subject: Any, slots: Any, changed: Path, segment: WeightSegment
) -> None:
    teacher = subject.teacher
    own = _rows(subject, slots)
    given = WeightSegment.attach(os.dup(segment.fd))
    if subject.ranks == "dp_size":
        with pytest.raises(ConfigError, match="cannot have dp_size"):
            teacher.weights(given)
        given.close()
        return
    teacher.weights(given)
    drift = teacher.load(4)
    assert drift["tokens"] == 124
    assert drift["largest"] < (1e-4 if subject.dtype == torch.float32 else 0.5)
    assert teacher.version == 4
    found = _rows(subject, slots)
    want = torch.cat(models.expected(changed, models.sequences((2, 7, 100)), subject.dtype))
    bound = 1e-4 if subject.dtype == torch.float32 else 6e-2
    torch.testing.assert_close(found, want, rtol=bound, atol=bound)
    assert (found - own).abs().max() > 0.1

    with pytest.raises(TransportError, match="holds version 4, expected 5"):
        teacher.load(5)
    segment.view(segment.entries[-1], 0).fill_(float("nan"))
    with pytest.raises(ModelError, match="do not fit its head"):
        teacher.load(4)
    teacher.restore()
    assert teacher.version == NO_VERSION
    assert torch.equal(_rows(subject, slots), own)
    teacher.restore()  # nothing to do
