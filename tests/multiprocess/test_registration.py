"""A divergence of a notebook's own trains on real engines, and can be set while a run goes on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import kdflow_lab as kd
from kdflow_lab.losses.names import unregister_divergence

SMALL = {"data": "zoo/tasks", "rows": 64, "batch_size": 8, "lr": 1e-3}


def own_forward_kl(student_logits: Any, teacher_logits: Any, scale: float = 1.0) -> Any:
    """KL(teacher || student), written as a user would."""
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return scale * (teacher.exp() * (teacher - student)).sum(-1)


def test_registered_divergence_trains_as_the_built_in_one(lab: kd.Lab) -> None:
    kd.register_divergence("own_kl")(own_forward_kl)
    try:
        ours = lab.distill(**SMALL, steps=4, loss="own_kl").wait()
        built_in = lab.distill(**SMALL, steps=4, loss="forward_kl").wait()
        doubled = lab.distill(
            **SMALL, steps=1, loss="own_kl", loss_params={"scale": 2.0}, kd_ratio=1.0
        ).wait()
        np.testing.assert_allclose(ours.metrics["loss"], built_in.metrics["loss"], rtol=1e-4)
        expected = 2 * built_in.metrics["kd"][0]
        np.testing.assert_allclose(doubled.metrics["loss"][0], expected, rtol=1e-4)
    finally:
        unregister_divergence("own_kl")


def test_divergence_registered_later_can_be_set_while_a_run_goes_on(lab: kd.Lab) -> None:
    run = lab.distill(**SMALL, steps=100_000)
    while run.step < 2:
        time.sleep(0.02)
    kd.register_divergence("late")(own_forward_kl)
    try:
        run.set(loss="late")
        deadline = time.monotonic() + 30
        while not any(event["event"] == "set" for event in run.events):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        step = run.step
        while run.step < step + 2:
            assert time.monotonic() < deadline and run.state == "running"
            time.sleep(0.02)
        run.stop()
        assert run.wait().state == "stopped"
    finally:
        unregister_divergence("late")
