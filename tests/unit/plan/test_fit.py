"""What would fit: the nearest change first, joined changes where no single one is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.plan.devices import Room
from kdflow_lab.plan.fit import remedies

LAB = LabConfig(teacher="zoo/teacher", student="zoo/student", device="cpu")


def _search(config: DistillConfig, needed: Any, *, lab: LabConfig = LAB, **options: Any) -> Any:
    """Search where `needed` says how many bytes a change of options needs, and 100 are free."""

    def attempt(of_lab: Mapping[str, Any], of_run: Mapping[str, Any]) -> tuple[Room, ...]:
        return (Room("host", needed({**of_lab, **of_run}), 100.0),)

    asked = {"longest": 200, "on_gpu": False, **options}
    return remedies(lab, config, attempt=attempt, **asked)


def test_the_mildest_budget_that_fits_is_found() -> None:
    found = _search(
        DistillConfig(),
        lambda changes: changes.get("micro_batch_tokens", 8192) / 20,
    )
    assert [one.run for one in found] == [{"micro_batch_tokens": 1024, "max_length": 1024}]
    assert str(found[0]) == "micro_batch_tokens=1024, max_length=1024"


def test_a_budget_never_falls_below_the_longest_row() -> None:
    tried: list[int] = []

    def needed(changes: dict[str, Any]) -> float:
        tried.append(changes.get("micro_batch_tokens", 8192))
        return 1000.0

    assert _search(DistillConfig(), needed, longest=900) == []
    assert min(tried) == 1024


def test_what_changes_no_result_comes_before_adapters() -> None:
    enough = {"activation_checkpointing", "lora_r", "chunk_tokens"}
    found = _search(DistillConfig(), lambda changes: 50.0 if enough & set(changes) else 500.0)
    assert [next(iter(one.run)) for one in found] == [
        "activation_checkpointing",
        "chunk_tokens",
        "lora_r",
    ]


def test_changes_are_joined_where_none_is_enough() -> None:
    found = _search(DistillConfig(), lambda changes: 400.0 - 110.0 * len(changes))
    assert len(found) == 1
    assert found[0].run == {
        "micro_batch_tokens": 256,
        "max_length": 256,
        "activation_checkpointing": True,
    }


def test_gpus_get_students_and_bfloat16() -> None:
    config = DistillConfig(precision="float32")
    enough = {"students", "precision"}
    found = _search(
        config,
        lambda changes: 50.0 if enough & set(changes) else 500.0,
        on_gpu=True,
        lab=LabConfig(teacher="zoo/teacher", student="zoo/student", device="cuda"),
    )
    assert [{**one.lab, **one.run} for one in found] == [
        {"precision": "bfloat16"},
        {"students": 2},
    ]
    assert "a new lab" in str(found[1])
