"""The copy budget, counted in SGLang's own process: one write after the final norm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counting_host
import pytest
import tiny_models as models
import torch
from slots import Slots

from kdflow_lab.teacher import make_teacher
from kdflow_lab.teacher.sglang import process


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let SGLang run in a host that counts, into this file."""
    path = [str(Path(counting_host.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv(counting_host.FILE, str(tmp_path / "counts.jsonl"))
    monkeypatch.setattr(process.EngineProcess, "host", counting_host.__name__)
    return tmp_path / "counts.jsonl"


@pytest.fixture
def teacher(counts: Path, tmp_path: Path) -> Iterator[Any]:
    folder = models.write_model("llama", tmp_path / "model")
    made, _ = make_teacher("sglang", str(folder), threads=1)
    yield made
    made.close()


def test_rows_are_written_once_and_copied_nowhere(teacher: Any, counts: Path) -> None:
    """Prompts of which the last tokens are wanted, as responses are; one has holes."""
    counts.unlink()  # what the canary asked
    slots = Slots(teacher)
    sequences = models.sequences((40, 3, 50))
    wanted = [*range(30, 40), *range(41, 43), *range(50, 93, 3)]
    request = slots.request(sequences, wanted)
    teacher.fill([request])
    passes = [json.loads(line) for line in counts.read_text().splitlines()]
    assert passes
    assert all(one["input_is_the_norms_output"] for one in passes)
    operations = [operation for one in passes for operation in one["operations"]]
    assert operations
    assert all(one["into_ring"] and one["from_norm"] for one in operations), operations
    assert sum(one["bytes"] for one in operations) == len(wanted) * teacher.hidden_size * 4
    rows = slots.rows(request)  # what the student maps
    want = torch.cat(models.expected(Path(counts.parent / "model"), sequences, torch.float32))
    torch.testing.assert_close(rows, want[torch.tensor(wanted)], rtol=1e-5, atol=1e-5)
    slots.close()
