"""Seconds of a step: floating-point operations of both models over the rate of this machine."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdflow_lab.plan import constants
from kdflow_lab.plan.sizes import ModelSize

if TYPE_CHECKING:
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.plan.memory import Setting
    from kdflow_lab.plan.workload import Workload

PROBE_S = 0.15
"""Seconds of the probe, which is made once a session."""
PROBE_SIZE = 512


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        teacher_s: The teacher alone.
        student_s: A student alone.
        rollout_s: Writing the answers, on-policy; else 0.
        step_s: All together: with `depth` or stale answers the slower hides the others.
    """

    teacher_s: float
    student_s: float
    rollout_s: float
    step_s: float


@functools.cache
def matmul_flops() -> float:
    """Measure float32 matrix products on one CPU thread; operations a second.

    The best of many, and one thread only: several would wait for whatever else the machine does.
    The thread count of this process is put back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(PROBE_SIZE, PROBE_SIZE)
        out = torch.empty_like(a)
        torch.mm(a, a, out=out)
        best, end = float("inf"), time.perf_counter() + PROBE_S
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2.0 * PROBE_SIZE**3 / best


def device_flops(threads: int, *, on_gpu: bool) -> float:
    """Operations a second of a process: probed on a CPU, assumed on a GPU."""
    return constants.GPU_FLOPS if on_gpu else threads * matmul_flops()


def decoder_flops(size: ModelSize, tokens: float, squares: float) -> float:
    """Operations of a forward pass through the decoder layers.

    2 a parameter and token (Kaplan et al. 2020, arXiv:2001.08361, table 1), and of the attention
    two products of queries x keys x width a layer; the causal half is computed, too.

    Args:
        size: The model's.
        tokens: That are run.
        squares: Sum of the squared lengths of the rows.
    """
    return constants.FORWARD_FLOPS * (
        size.active * tokens + 2.0 * size.layers * size.query * squares
    )


def head_flops(setting: Setting, responses: float, *, whole: bool) -> float:
    """Operations of the heads: logits of both models, and gradients of rows and of the weight.

    Args:
        setting: Of the run.
        responses: Trained tokens.
        whole: The head itself is trained; a frozen one has no gradient.
    """
    student, teacher = setting.vocabulary
    products = (3 if whole else 2) * student * setting.student.hidden
    if setting.teacher is not None:
        products += teacher * setting.teacher.hidden
    return 2.0 * products * responses


def step_time(
    setting: Setting, work: Workload, config: DistillConfig, threads: int, alone: int | None = None
) -> StepTime:
    """Predict the seconds of a step.

    Args:
        setting: What the processes are made of.
        work: What a step asks.
        config: The run's.
        threads: CPU threads of each engine.
        alone: Of a student while the teacher has nothing to do, since rows come from a cache.
    """
    rate = device_flops(threads, on_gpu=setting.on_gpu) * constants.EFFICIENCY
    teacher_s = 0.0
    if setting.teacher is not None:
        flops = decoder_flops(setting.teacher, work.teacher_tokens, work.squares)
        teacher_s = flops / rate + constants.CALL_S * work.micro_batches * setting.teacher.layers
    whole = config.lora_r is None
    passes = (3.0 if whole else 2.0) + (1.0 if config.activation_checkpointing else 0.0)
    flops = passes * decoder_flops(setting.student, work.tokens, work.squares)
    flops += head_flops(setting, work.responses, whole=whole)
    student_s = flops / setting.students / rate + constants.STEP_OVERHEAD_S
    student_s += passes * constants.CALL_S * work.micro_batches * setting.student.layers
    if not setting.on_gpu:
        # the optimizer reads and writes weights, gradients and moments once
        moved = 28.0 * setting.student.parameters / setting.students if whole else 0.0
        student_s += moved / constants.HOST_BYTES_PER_S
    rollout_s = _rollout(setting, config, rate) if config.on_policy else 0.0
    if setting.students > 1:
        # every layer is gathered twice and its gradient is shared out, in every micro-batch
        calls = 3 * (setting.student.layers + 1) * constants.COLLECTIVE_S
        link = constants.GPU_LINK_BYTES_PER_S if setting.on_gpu else constants.LINK_BYTES_PER_S
        moved = 12.0 * setting.student.parameters if whole else 8.0 * setting.student.parameters
        student_s += work.micro_batches * (calls + moved / link)
    if not setting.on_gpu:
        busy = setting.students + (setting.teacher is not None)
        crowd = max(1.0, threads * busy / len(os.sched_getaffinity(0)))
        teacher_s, student_s = crowd * teacher_s, crowd * student_s
    together = max(teacher_s, student_s) if config.depth else teacher_s + student_s
    if config.cache and not config.on_policy:
        passes = work.steps * config.batch_size / work.rows
        known = max(0.0, 1.0 - 1.0 / passes)  # the share of the steps whose rows came before
        together = (1.0 - known) * together + known * student_s * threads / (alone or threads)
    step_s = max(together, rollout_s) if config.max_staleness else together + rollout_s
    return StepTime(teacher_s, student_s, rollout_s, step_s)


def _rollout(setting: Setting, config: DistillConfig, rate: float) -> float:
    """Seconds to write a step's answers, each as long as it may become: token by token."""
    size = setting.student
    moved = 4.0 * size.parameters / constants.HOST_BYTES_PER_S
    if setting.on_gpu:
        moved = 2.0 * size.parameters / constants.GPU_BYTES_PER_S
    computed = 2.0 * (size.active + size.head) * config.batch_size / rate
    return config.max_new_tokens * (max(moved, computed) + constants.CALL_S * size.layers)
