"""The same lab on a GPU: NCCL, device placement, bfloat16, and the life of a run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import kdflow_lab as kd
from kdflow_lab.losses import Head, chunked_kd_loss, divergence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SMALL = {"data": "zoo/tasks", "rows": 256, "batch_size": 16, "lr": 1e-3}


@pytest.fixture(scope="module")
def gpu_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """Teacher and one student on the first GPU."""
    folder = tmp_path_factory.mktemp("gpu-runs")
    with kd.Lab(
        "zoo/teacher", "zoo/student", device="cuda", teacher_dtype="float32", dir=str(folder)
    ) as lab:
        yield lab


@pytest.fixture(scope="module")
def cpu_run(tmp_path_factory: pytest.TempPathFactory) -> kd.Run:
    """The same run on the CPU."""
    folder = tmp_path_factory.mktemp("cpu-runs")
    with kd.Lab("zoo/teacher", "zoo/student", device="cpu", dir=str(folder)) as lab:
        return lab.distill(**SMALL, steps=10).wait(timeout=120)


def test_training_on_a_gpu_is_training_on_the_cpu(gpu_lab: kd.Lab, cpu_run: kd.Run) -> None:
    run = gpu_lab.distill(**SMALL, steps=10, precision="float32").wait(timeout=120)
    started = next(event for event in run.events if event["event"] == "started")
    assert started["device"] == "cuda"
    assert started["ranks"][0]["transport"]["why"].startswith("auto: ")
    for column in ("loss", "kd", "ce", "agreement"):
        np.testing.assert_allclose(run.metrics[column], cpu_run.metrics[column], rtol=2e-3)
    np.testing.assert_allclose(run.metrics["loss"][0], cpu_run.metrics["loss"][0], rtol=1e-5)


def test_turns_on_one_gpu_are_the_same_training(gpu_lab: kd.Lab, cpu_run: kd.Run) -> None:
    options = {**SMALL, "steps": 10, "precision": "float32", "teacher_batches_per_phase": 4}
    run = gpu_lab.distill(**options, eval_every=5).wait(timeout=120)
    np.testing.assert_allclose(run.metrics["loss"], cpu_run.metrics["loss"], rtol=2e-3)


def test_bfloat16_learns_about_the_same(gpu_lab: kd.Lab, cpu_run: kd.Run) -> None:
    run = gpu_lab.distill(**SMALL, steps=10, eval_every=10).wait(timeout=120)
    np.testing.assert_allclose(run.metrics["loss"][0], cpu_run.metrics["loss"][0], rtol=2e-2)
    np.testing.assert_allclose(run.metrics["loss"], cpu_run.metrics["loss"], rtol=0.1)
    scores = [event for event in run.events if event["event"] == "evaluated"]
    assert [event["step"] for event in scores] == [0, 10]
    assert scores[1]["kl"] < scores[0]["kl"]
    scored = gpu_lab.evaluate("zoo/tasks", model=run, rows=32)
    assert np.isfinite(scored.kl) and 0 <= scored.exact_match <= 1


def test_killed_student_on_a_gpu_resumes(gpu_lab: kd.Lab) -> None:
    options = {**SMALL, "steps": 40, "checkpoint_every": 10, "precision": "float32"}
    whole = gpu_lab.distill(**options).wait(timeout=120)
    run = gpu_lab.distill(**options)
    while run.step < 15:
        time.sleep(0.02)
    started = next(event for event in run.events if event["event"] == "started")
    os.kill(started["ranks"][0]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while run.state != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.resume().wait(timeout=120)
    np.testing.assert_allclose(run.metrics["loss"], whole.metrics["loss"], rtol=2e-3)
    assert {record["attempt"] for record in run.records} == {1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_loss_on_a_gpu_is_the_whole_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to("cuda", dtype)

    hidden, teacher_hidden = made(300, 64), made(300, 96)
    weight, teacher_weight = made(1000, 64) / 8, made(1000, 96) / 10
    labels = torch.randint(0, 1000, (300,), generator=generator).cuda()
    hidden.requires_grad_(True)
    weight.requires_grad_(True)
    output = chunked_kd_loss(
        hidden,
        Head(weight),
        teacher_hidden,
        Head(teacher_weight),
        labels,
        divergence="forward_kl",
        kd_ratio=0.5,
        num_valid_tokens=300,
        chunk_tokens=128,
    )
    output.loss.backward()
    exact_hidden = hidden.detach().double().requires_grad_(True)
    exact_weight = weight.detach().double().requires_grad_(True)
    logits = exact_hidden @ exact_weight.T
    teacher_logits = teacher_hidden.double() @ teacher_weight.double().T
    kd_loss = divergence("forward_kl", logits, teacher_logits).mean()
    loss = 0.5 * torch.nn.functional.cross_entropy(logits, labels) + 0.5 * kd_loss
    loss.backward()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    assert output.loss.item() == pytest.approx(loss.item(), rel=tolerance)
    for ours, exact in ((hidden, exact_hidden), (weight, exact_weight)):
        assert ours.grad is not None and exact.grad is not None
        error = (ours.grad.double() - exact.grad).norm() / exact.grad.norm()
        assert error.item() < tolerance
