"""How much of the teacher hides behind the student: the pipeline against taking turns.

A real lab with a teacher and a student of similar cost, one thread each. In the runs with depth 0
the two take turns, so each is measured alone: the teacher's own seconds, and the student's, which
are the step without the wait. With depth 2 they overlap, and a step should take little more than
the slower of the two. Runs are interleaved; figures are medians of steps after the first five.

What bounds it: two processes share memory bandwidth, last-level cache and the turbo clock, so each
is somewhat slower beside the other than alone; handles and slots cost microseconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from _common import machine, print_result

import kdflow_lab as kd

TEACHER: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "intermediate_size": 1408,
    "head_dim": 64,
}
STUDENT: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "intermediate_size": 704,
    "head_dim": 32,
}
ROWS, WARM_UP, STEPS, REPEATS = 512, 5, 25, 3


def make_model(folder: Path, shape: dict[str, Any]) -> str:
    """Write a randomly initialised model with the zoo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(kd.zoo.path("zoo/student"))
    torch.manual_seed(0)
    config = Qwen3Config(
        **shape,
        vocab_size=len(tokenizer),
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(lab: kd.Lab, depth: int) -> dict[str, float]:
    """Run some steps; return medians of the steady ones, in seconds."""
    run = lab.distill(
        data="zoo/tasks", rows=ROWS, steps=STEPS, batch_size=32, kd_ratio=1.0, depth=depth
    ).wait()
    steady = run.metrics.iloc[WARM_UP:]
    return {
        "step_s": float(steady["step_s"].median()),
        "teacher_s": float(steady["teacher_busy_s"].median()),
        "student_s": float((steady["step_s"] - steady["teacher_wait_s"]).median()),
    }


def main() -> None:
    """Interleave both ways and print one JSON object."""
    with tempfile.TemporaryDirectory(prefix="kdflow-overlap-") as name:
        folder = Path(name)
        teacher = make_model(folder / "teacher", TEACHER)
        student = make_model(folder / "student", STUDENT)
        turns: list[dict[str, Any]] = []
        pipelined: list[dict[str, Any]] = []
        with kd.Lab(teacher, student, threads=1, dir=str(folder / "runs")) as lab:
            measure(lab, 0)  # the first touch of everything
            for _ in range(REPEATS):
                turns.append(measure(lab, 0))
                pipelined.append(measure(lab, 2))
    teacher_s = median(one["teacher_s"] for one in turns)
    student_s = median(one["student_s"] for one in turns)
    step_s = median(one["step_s"] for one in pipelined)
    turns_s = median(one["step_s"] for one in turns)
    slower_s = max(teacher_s, student_s)
    print_result(
        {
            "benchmark": "overlap",
            "teacher_alone_s": teacher_s,
            "student_alone_s": student_s,
            "step_depth_0_s": turns_s,
            "step_depth_2_s": step_s,
            "step_over_slower_alone": step_s / slower_s,
            "depth_0_over_slower_alone": turns_s / slower_s,
            "wanted": {"step_over_slower_alone": "<= 1.15"},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
