"""The loss sandbox on real engines: its numbers, what it keeps, runs, several students."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch

import kdflow_lab as kd
from kdflow_lab.errors import ConfigError, DataError, RunError
from kdflow_lab.evaluate.sandbox_report import Sandbox
from kdflow_lab.losses import divergence
from kdflow_lab.losses.names import unregister_divergence

LOSSES = ["forward_kl", "reverse_kl", "jsd", "tvd", "cross_entropy"]
SMALL = {"data": "zoo/tasks", "rows": 64, "batch_size": 8, "lr": 1e-3, "steps": 2}


def _rows(kinds: list[str], count: int = 3) -> list[dict[str, Any]]:
    from kdflow_lab.zoo.tasks import tasks

    return [dict(row) for row in tasks("test", rows=count, kinds=kinds)]  # type: ignore[arg-type]


def _logits(model: Any, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A plain forward pass: logits before each response token, and those tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kd.zoo.path("zoo/student"))
    encoded = tokenizer.apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    ids = torch.tensor([encoded["input_ids"]])
    mask = torch.tensor(encoded["assistant_masks"], dtype=torch.bool)[1:]
    with torch.no_grad():
        return model(ids).logits[0, :-1][mask], ids[0, 1:][mask]


def _plain(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    path = kd.zoo.path(name)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _equal_plain(box: Sandbox, student: Any, rows: list[dict[str, Any]]) -> None:
    """Hold forward and reverse KL and their pushes against plain `transformers`."""
    teacher = _plain("zoo/teacher")
    for number, row in enumerate(rows):
        (ours, labels), (theirs, _) = _logits(student, row), _logits(teacher, row)
        for name in ("forward_kl", "reverse_kl"):
            leaf = ours.clone().requires_grad_()
            values = divergence(name, leaf, theirs)
            values.sum().backward()
            of_row = [look for look in box.looks if look.row == number]
            assert [look.token_id for look in of_row] == labels.tolist()
            for token, look in enumerate(of_row):
                assert look.values[name] == pytest.approx(float(values[token].detach()), rel=1e-3)
                assert leaf.grad is not None
                best = look.up[name][0]
                assert best.size == pytest.approx(-float(leaf.grad[token].min()), rel=1e-2)
    assert len(box.frame) == len(box.looks)


@pytest.fixture(scope="module")
def run(lab: kd.Lab) -> kd.Run:
    return lab.distill(**SMALL).wait()


def test_second_look_computes_only(lab: kd.Lab) -> None:
    rows = _rows(["either", "greet"], 4)
    start = time.perf_counter()
    first = lab.sandbox(rows, ["forward_kl", "reverse_kl"])
    captured_s = time.perf_counter() - start
    _equal_plain(first, _plain("zoo/student"), rows)
    again, times = first, []
    for _ in range(3):
        start = time.perf_counter()
        again = lab.sandbox(rows, LOSSES)
        times.append(time.perf_counter() - start)
    print(f"sandbox of {len(first.looks)} tokens: {captured_s:.3f} s, then {min(times):.3f} s")
    assert min(times) < captured_s
    assert min(times) < 2.0  # 0.06 s on an idle machine
    for one, other in zip(first.looks, again.looks, strict=True):
        assert other.values["forward_kl"] == pytest.approx(one.values["forward_kl"], rel=1e-6)
        assert other.up["reverse_kl"][0].size == pytest.approx(one.up["reverse_kl"][0].size)
    assert list(again.frame.columns[4:9]) == LOSSES


def test_students_share_the_rows_as_one_alone_has_them(lab: kd.Lab, lab_of_one: kd.Lab) -> None:
    rows = _rows(["pick", "greet", "sort"], 5)
    alone, shared = (each.sandbox(rows, LOSSES).frame for each in (lab_of_one, lab))
    assert alone["token"].tolist() == shared["token"].tolist()
    assert sorted(set(shared["row"])) == [0, 1, 2, 3, 4]
    for loss in LOSSES:
        assert shared[loss].tolist() == pytest.approx(alone[loss].tolist(), rel=1e-3, abs=1e-6)
    # fewer texts than students
    text = "Every token counts."
    one = lab.sandbox([text], "jsd")
    assert "".join(one.rows[0]) == text
    assert [look.position for look in one.looks] == list(range(1, len(one.rows[0])))


def test_a_finished_run_is_looked_at_with_its_weights(lab: kd.Lab, run: kd.Run) -> None:
    rows = _rows(["greet"], 2)
    before = lab.sandbox(rows)
    box = lab.sandbox(rows, model=run)
    assert box.name == run.name
    _equal_plain(box, run.student(), rows)
    assert box.looks != before.looks
    assert lab.sandbox(rows).looks == before.looks  # the capture of the student is still its own
    # more steps, other weights: the capture of the run's earlier checkpoint does not count
    lab.resume(run, steps=4).wait()
    later = lab.sandbox(rows, model=run)
    _equal_plain(later, run.student(), rows)
    assert later.looks != box.looks


def test_a_student_whose_capture_is_gone_makes_all_capture_again(lab_of_one: kd.Lab) -> None:
    rows = _rows(["date"], 1)
    wanted = lab_of_one.sandbox(rows).looks
    for number in range(9):  # more than an engine keeps
        lab_of_one.sandbox([f"A text of its own, number {number}."])
    assert lab_of_one.sandbox(rows).looks == wanted


def test_data_by_name_teacher_and_temperature(lab: kd.Lab) -> None:
    box = lab.sandbox("zoo/tasks", rows=2, model="teacher", temperature=3.0)
    assert len(box.rows) == 2
    frame = box.frame
    assert frame["agreement"].tolist() == [True] * len(frame)
    assert frame["forward_kl"].tolist() == pytest.approx([0.0] * len(frame), abs=1e-5)
    assert frame["student_entropy"].tolist() == pytest.approx(frame["teacher_entropy"].tolist())


def test_own_divergence_is_looked_at_in_the_engines(lab: kd.Lab) -> None:
    rows = _rows(["greet"], 1)
    try:

        @kd.register_divergence("half_squared")
        def half_squared(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return 0.5 * (student.softmax(-1) - teacher.softmax(-1)).pow(2).sum(-1)

        box = lab.sandbox(rows, ["half_squared", "forward_kl"])
        student, _ = _logits(_plain("zoo/student"), rows[0])
        teacher, _ = _logits(_plain("zoo/teacher"), rows[0])
        wanted = half_squared(student, teacher)
        assert [look.values["half_squared"] for look in box.looks] == pytest.approx(
            wanted.tolist(), rel=1e-3
        )

        @kd.register_divergence("half_squared")
        def changed(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return half_squared(student, teacher) * 2

        again = lab.sandbox(rows, ["half_squared"])
        assert again.looks[0].values["half_squared"] == pytest.approx(
            2 * float(wanted[0]), rel=1e-3
        )
    finally:
        unregister_divergence("half_squared")


def test_mistakes_are_told_and_leave_the_lab_usable(lab: kd.Lab) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'forward_kl'"):
        lab.sandbox(["a text"], ["forward_k"])
    with pytest.raises(DataError, match="more than"):
        lab.sandbox(["many words " * 50], max_length=8)
    with pytest.raises(RunError, match=r"is (running|starting)"):
        busy = lab.distill(**{**SMALL, "steps": 100_000})
        try:
            lab.sandbox(["a text of words"], model=busy)
        finally:
            busy.stop()
            busy.wait(timeout=60)
    assert lab.sandbox(["a text of words"]).looks


def test_kernel_needs_no_torch() -> None:
    code = """
import sys
from kdflow_lab.evaluate.sandbox_ask import Asked
from kdflow_lab.evaluate.sandbox_report import Sandbox
import kdflow_lab.lab, kdflow_lab.widgets._sandbox_svg
Asked.checked(["a"], ["jsd"], None, temperature=1.0, top=5, rows=4, split="test", seed=1,
              max_length=9).fields({"model": "m", "is_run": False, "data": "d"})
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
