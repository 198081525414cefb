"""The sharded average is the formula, in float64 and by a plain loop, on any number of ranks."""

from __future__ import annotations

import functools
from pathlib import Path

import mean_teacher_ranks
import pytest
import tiny_models as models
import torch
from ranks import on_ranks
from tiny_lora import adapted
from torch import Tensor

from kdflow_lab.errors import ModelError
from kdflow_lab.load import load_model
from kdflow_lab.mean_teacher.average import Average


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A student and a teacher of one architecture with other weights."""
    student = models.write_model("llama", tmp_path_factory.mktemp("student"))
    model = load_model(str(student))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    teacher = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(teacher)
    return str(student), str(teacher)


def _plain(student: str, teacher: str, ema: float) -> dict[str, Tensor]:
    """The same updates in float64, on whole tensors."""
    model = load_model(student)
    weights = {name: one.detach().double() for name, one in model.named_parameters()}
    average = {name: one.detach().double() for name, one in load_model(teacher).named_parameters()}
    for update in range(mean_teacher_ranks.UPDATES):
        for name, change in mean_teacher_ranks.changes(model, update).items():
            weights[name] = weights[name] + change
            average[name] = ema * average[name] + (1.0 - ema) * weights[name]
    return average


@functools.cache
def _seen(world_size: int, student: str, teacher: str, ema: float) -> list:
    return on_ranks(world_size, mean_teacher_ranks.averaged, student, teacher, ema)


@pytest.mark.parametrize("world_size", [1, 2])
def test_average_is_the_formula(world_size: int, folders: tuple[str, str]) -> None:
    want = _plain(*folders, 0.9)
    for rank in _seen(world_size, *folders, 0.9):
        assert set(rank.average) == set(want)
        for name, one in rank.average.items():
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), want[name], rtol=1e-5, atol=1e-6)
        assert rank.rows == pytest.approx(1 / world_size, abs=0.01)


def test_two_ranks_average_as_one_and_what_is_handed_over_is_cast_from_it(
    folders: tuple[str, str],
) -> None:
    (alone,), (first, second) = (_seen(size, *folders, 0.9) for size in (1, 2))
    for name, one in alone.average.items():
        assert torch.equal(one, first.average[name])
        assert torch.equal(one.bfloat16(), first.handed_over[name])
        assert torch.equal(one.bfloat16(), alone.handed_over[name])
    assert second.handed_over == {}


def test_with_nothing_kept_the_average_is_the_student(folders: tuple[str, str]) -> None:
    student, teacher = (load_model(folder) for folder in folders)
    average = Average(student, teacher)
    average.update(0.0)
    for name, one in student.named_parameters():
        assert torch.equal(average.tensors[name], one)


def test_tied_parameters_are_there_once_and_adapters_are_merged(tmp_path: Path) -> None:
    folder = str(models.write_model("qwen3", tmp_path / "tied"))
    average = Average(load_model(folder), load_model(folder))
    assert "lm_head.weight" not in average.tensors
    assert "model.embed_tokens.weight" in average.tensors

    folder = str(models.write_model("llama", tmp_path / "untied"))
    student, plain = adapted(load_model(folder)), load_model(folder)
    average = Average(student, plain)
    average.update(0.75)
    layer = student.lm_head
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0
    want = plain.lm_head.weight + 0.25 * product
    assert product.abs().max() > 0.01
    torch.testing.assert_close(average.tensors["lm_head.weight"], want.detach())


def test_models_with_other_parameters_are_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    student = load_model(folders[0])
    tied = load_model(str(models.write_model("qwen3", tmp_path / "qwen3")))
    with pytest.raises(ModelError, match=r"has not\. Expected two models of one architecture"):
        Average(student, tied)
    with pytest.raises(ModelError, match="the teacher no such parameter"):
        Average(tied, student)
