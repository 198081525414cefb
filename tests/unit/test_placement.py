"""Which GPU is whose: what a lab is told, and what reaches torch and SGLang. No GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.config import LabConfig
from kdflow_lab.engines import Engines
from kdflow_lab.errors import ConfigError
from kdflow_lab.jobs import StudentPlace
from kdflow_lab.teacher.sglang.arguments import SglangOptions, server_arguments
from kdflow_lab.teacher.sglang.process import environment_of

MODELS = {"teacher": "zoo/teacher", "student": "zoo/student"}


def _place(**changes: Any) -> StudentPlace:
    fields = {"rank": 1, "world_size": 2, "device": "cuda", "threads": 1, "socket": None}
    return StudentPlace(**{**fields, "rendezvous": "", **changes})


def test_a_rank_takes_its_own_number_or_the_one_it_is_given() -> None:
    assert _place().torch_device == "cuda:1"
    assert _place(gpu=5).torch_device == "cuda:5"
    assert _place(gpu=0).torch_device == "cuda:0"
    assert _place(device="cpu").torch_device == "cpu"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"students": 2, "student_devices": [0]},
            r"each of 2 students, .* is \[0\]",
        ),
        ({"student_devices": [-1]}, "each of 1 students"),
        ({"students": 2, "student_devices": [3, 3]}, r"each of 2 .* \[3, 3\]"),
        ({"tp_size": 2, "dp_size": 2, "teacher_devices": [0, 1]}, "each of 4 teacher ranks"),
        ({"teacher_devices": []}, "teacher_devices"),
        ({"teacher_devices": [0], "device": "cpu"}, "device is 'cpu'"),
        ({"transport": "cuda_ipc", "device": "cpu"}, "needs GPUs, but device is 'cpu'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabConfig.parse(**MODELS, **options)


def test_gpus_are_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LabConfig.parse(**MODELS, student_devices=[0])
    monkeypatch.setattr(Engines, "device", "cpu")  # what "auto" comes to without a GPU
    with pytest.raises(ConfigError, match="this machine has none"):
        Engines(config, tmp_path).up()


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, True),
        ({"students": 2, "student_devices": [1, 2]}, False),
        ({"tp_size": 2, "student_devices": [1]}, True),
        ({"teacher_devices": [3], "students": 4}, True),
        ({"teacher_devices": [3], "students": 3}, False),
    ],
)
def test_who_shares_a_gpu_is_known_from_the_placement(
    tmp_path: Path, options: dict[str, Any], shared: bool
) -> None:
    engines = Engines(LabConfig.parse(**MODELS, device="cuda", **options), tmp_path)
    assert engines.colocated is shared
    assert not Engines(LabConfig.parse(**MODELS, device="cpu"), tmp_path).colocated


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("colocated", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_sglang_can_sleep_only_where_it_shares_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, colocated: bool, installed: bool
) -> None:
    found = (lambda name: name) if installed else (lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", found)
    options = SglangOptions(colocated=colocated)
    made = server_arguments("", options, dtype="bfloat16", device=device, trust_remote_code=False)
    names = {"enable_memory_saver", "enable_weights_cpu_backup"}
    sleeps = device == "cuda" and colocated and installed
    assert {name for name in names if made.get(name)} == (names if sleeps else set())
    assert options.asked == [], "it is no option of the user's"


@pytest.mark.parametrize(
    ("before", "gpus", "after"),
    [
        (None, None, None),
        (None, [2, 3], "2,3"),
        ("4,5,6", [0, 2], "4,6"),
        ("4,5,6", None, "4,5,6"),
    ],
)
def test_sglang_sees_its_own_gpus_only(
    monkeypatch: pytest.MonkeyPatch, before: str | None, gpus: list[int] | None, after: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    made = environment_of({}, device="cuda", threads=None, gpus=gpus)
    assert made.get("CUDA_VISIBLE_DEVICES") == after


def test_a_gpu_that_is_hidden_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match=r"shows 2 GPU\(s\)"):
        environment_of({}, device="cuda", threads=None, gpus=[2])
