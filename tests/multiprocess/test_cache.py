"""The cache with real engines: the teacher is asked once, and the losses are the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import faults
import pytest

import kdflow_lab as kd
from kdflow_lab.errors import CacheError, ConfigError, RunError
from kdflow_lab.run import Run

OPTIONS: dict[str, Any] = {
    "rows": 96,
    "batch_size": 32,
    "steps": 6,  # two epochs
    "lr": 2e-3,
    "checkpoint_minutes": None,
}


@pytest.fixture(scope="module")
def plain(lab: kd.Lab) -> Run:
    """The run without a cache that every other one must equal."""
    return lab.distill(**OPTIONS).wait()


def _losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.records]


def _cached(run: Run) -> list[float]:
    return [record["cached"] for record in run.records]


def _asked(run: Run) -> float:
    """Hidden rows that the teacher computed for the run's steps."""
    return sum((1 - record["cached"]) * record["tokens"] for record in run.records)


def _folder(lab: kd.Lab, root: Path) -> Path:
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def test_second_epoch_comes_from_the_disk(lab: kd.Lab, plain: Run, tmp_path: Path) -> None:
    run = lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path).wait()
    assert _losses(run) == _losses(plain)
    assert _cached(run)[:3] == [0.0] * 3 and _cached(run)[-1] == 1.0
    assert run.records[-1]["teacher_busy_s"] == 0.0 and run.records[-1]["teacher_idle"] == 1.0
    tokens = sum(record["tokens"] for record in run.records[:3])
    (said,) = [event for event in run.events if event["event"] == "cache"]
    assert said["response_tokens"] == tokens and said["bytes"] == tokens * 256 * 4
    # other losses, rates and forks ask for nothing
    for other in (
        lab.distill(**{**OPTIONS, "lr": 1e-4}, cache=True, cache_dir=tmp_path, loss="jsd").wait(),
        run.fork(loss="reverse_kl", kd_temperature=2.0, steps=9).wait(),
    ):
        assert _asked(other) == 0 and len(other.records) >= 3


def test_capture_then_train_without_a_teacher_pass(
    lab: kd.Lab, plain: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = lab.capture(rows=40, cache_dir=tmp_path)
    assert half.rows == 40 and half.computed == half.tokens
    assert f"{half.tokens:,} response tokens x 1,024 bytes" in capsys.readouterr().out
    whole = lab.capture(rows=96, cache_dir=tmp_path)
    assert whole.computed == whole.tokens - half.tokens
    assert whole.written == whole.computed * 1024
    run = lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path).wait()
    assert _losses(run) == _losses(plain)
    assert _asked(run) == 0
    assert lab.capture(rows=96, cache_dir=tmp_path).computed == 0
    assert "96 with" in whole._repr_html_()


def test_partial_cache_is_used_and_completed(lab: kd.Lab, plain: Run, tmp_path: Path) -> None:
    part = lab.capture(rows=40, cache_dir=tmp_path)
    run = lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path, eval_every=6).wait()
    assert _losses(run) == _losses(plain)
    assert 0 < _cached(run)[0] < 1
    epoch = sum(record["tokens"] for record in run.records[:3])
    # a row that the other student has asked for and not received yet is asked for once more
    late = sum(record["tokens"] for record in run.records[1:3])
    assert epoch - part.tokens <= round(_asked(run)) <= epoch - part.tokens + late
    again = lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path, eval_every=6).wait()
    assert _asked(again) == 0
    scores = [
        {name: event[name] for name in ("kl", "agreement")}
        for one in (run, again)
        for event in one.events
        if event["event"] == "evaluated" and event["step"] == 6
    ]
    assert scores[0] == scores[1]


def test_torn_part_is_refused_and_asked_for_again(lab: kd.Lab, plain: Run, tmp_path: Path) -> None:
    lab.capture(rows=96, cache_dir=tmp_path)
    torn = max(_folder(lab, tmp_path).glob("*.rows"), key=lambda file: file.stat().st_size)
    os.truncate(torn, 1000)
    run = lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path).wait()
    assert _losses(run) == _losses(plain)
    said = [event["message"] for event in run.events if event["event"] == "warning"]
    assert any("torn" in text and torn.name in text and "Remove" in text for text in said)
    assert _asked(run) > 0
    assert _cached(run)[-1] == 1.0


def test_cache_of_another_teacher_is_refused(lab: kd.Lab, tmp_path: Path) -> None:
    lab.capture(rows=8, cache_dir=tmp_path)
    manifest = _folder(lab, tmp_path) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "weights": "others"}))
    with pytest.raises(CacheError, match=r"another teacher.*weights"):
        lab.capture(rows=8, cache_dir=tmp_path)
    with pytest.raises(RunError, match=r"another teacher.*weights"):
        lab.distill(**OPTIONS, cache=True, cache_dir=tmp_path).wait()


def test_full_disk_keeps_what_is_whole(lab: kd.Lab, plain: Run, tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", megabytes=1) as disk:
        file = faults.fill(disk, leave=300_000)
        with pytest.raises(CacheError, match=r"No space left.*Free some space"):
            lab.capture(rows=96, cache_dir=disk)
        run = lab.distill(**OPTIONS, cache=True, cache_dir=disk).wait()
        assert _losses(run) == _losses(plain)
        said = [event["message"] for event in run.events if event["event"] == "warning"]
        assert any("not completed" in text and "No space left" in text for text in said)
        file.unlink()
        run = lab.distill(**OPTIONS, cache=True, cache_dir=disk).wait()
        assert _losses(run) == _losses(plain)
        assert _cached(run)[-1] == 1.0


def test_killed_student_leaves_a_cache_that_is_used(lab_of_one: kd.Lab, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 12, "checkpoint_every": 2, "cache": True}
    run = lab_of_one.distill(**options, cache_dir=tmp_path)
    while run.step < 3:
        assert run.state in ("starting", "running")
    faults.send(lab_of_one, "student 0", signal.SIGKILL)
    with pytest.raises(RunError, match="died"):
        run.wait()
    run.resume()
    run.wait()
    whole = lab_of_one.distill(**options, cache_dir=tmp_path / "other").wait()
    assert _losses(run)[-4:] == _losses(whole)[-4:]
    assert _asked(lab_of_one.distill(**options, cache_dir=tmp_path).wait()) == 0


def test_sweep_of_four_losses_costs_one_teacher_pass(lab_of_one: kd.Lab, tmp_path: Path) -> None:
    losses = ["forward_kl", "reverse_kl", "jsd", "tvd"]
    sweep = lab_of_one.sweep(**OPTIONS, loss=losses, eval_rows=16, cache_dir=tmp_path, name="four")
    sweep.wait()
    first = sweep.runs[0]
    began = [run.records[0]["time"] for run in sweep]
    assert began == sorted(began)
    epoch = sum(record["tokens"] for record in first.records[:3])
    assert round(sum(map(_asked, sweep))) == epoch
    assert [_asked(run) for run in sweep.runs[1:]] == [0, 0, 0]
    frame = sweep.frame
    assert frame["loss"].tolist() == losses and set(frame["state"]) == {"finished"}
    assert None not in [line["kl"] for line in sweep.lines]
    assert sweep.best("kl").name.startswith("four-")


def test_options_that_do_not_fit_are_refused(lab: kd.Lab) -> None:
    with pytest.raises(ConfigError, match=r"Unknown option of capture 'row'.*'rows'"):
        lab.capture(row=3)
    for options, why in (
        ({"on_policy": True}, "on-policy"),
        ({"algorithm": "sft"}, "no teacher"),
        ({"teacher_update_every": 2}, "changes the teacher"),
    ):
        with pytest.raises(ConfigError, match=why):
            lab.distill(**options, cache=True)


def test_stream_and_mixture_read_what_another_run_kept(lab: kd.Lab, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {word}", "response": word * 3} for word in "abcdefghijklmnop"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"batch_size": 8, "cache": True, "cache_dir": tmp_path / "cache"}
    lab.capture(str(file), cache_dir=tmp_path / "cache")
    stream = lab.distill(data=str(file), streaming=True, steps=4, **options).wait()
    assert _asked(stream) == 0
    mixture = lab.distill(data={str(file): 3, "zoo/tasks": 1}, rows=16, steps=2, **options).wait()
    assert 0.1 < _cached(mixture)[0] < 0.9


def test_other_loras_and_tokenizers_read_the_same_rows(lab: kd.Lab, tmp_path: Path) -> None:
    options = {**OPTIONS, "cache": True, "cache_dir": tmp_path}
    lab.distill(**options).wait()
    assert _asked(lab.distill(**options, lora_r=4).wait()) == 0
    across = lab.distill(**options, algorithm="byte_prefix").wait()
    assert _asked(across) == 0  # the teacher is asked for the same ids
