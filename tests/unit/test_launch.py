"""What is asked of a new run, of a fork and of a resumed run, before any engine hears of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import held

from kdflow_lab import checkpoints, launch, settings
from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.rundir import RunDirectory

LAB = {"teacher": "zoo/teacher", "student": "zoo/student"}


def _new(folder: Path, *, name: str | None = None, **options: Any) -> RunDirectory:
    return launch.new_run(folder, launch.checked(options), LAB, name=name)


def _checkpoint(directory: RunDirectory, step: int) -> Path:
    """Write a checkpoint's files, whole as far as their sizes say."""
    folder = directory.checkpoints / str(step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * step)
    state = {"step": step, "ranks": 1, "files": {"weights": step}}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def _parent(folder: Path, *, counted: int = 40, **options: Any) -> RunDirectory:
    """A stopped run with checkpoints of steps 10 and 20, whose lr was set at 5, 11 and 15."""
    directory = _new(folder, name="parent", **options)
    directory.event("starting", attempt=1)
    directory.event("started", attempt=1, from_step=0, steps=options.get("steps", counted))
    for step, lr in ((5, 0.005), (11, 0.011), (15, 0.015)):
        directory.event("set", step=step, changes={"lr": lr})
    for step in (10, 20):
        _checkpoint(directory, step)
    directory.event("stopped", step=20)
    return directory


def _fork(parent: RunDirectory, step: int | None = None, **changes: Any) -> RunDirectory:
    return launch.forked_run(parent, parent.path.parent, LAB, step, changes)[0]


# -- new runs -------------------------------------------------------------------------------------


def test_run_is_named_by_its_time_and_loss_and_never_like_another(tmp_path: Path) -> None:
    runs = [_new(tmp_path, loss="rkl") for _ in range(3)]
    names = [run.path.name for run in runs]
    assert len(set(names)) == 3
    assert all(name[15:].startswith("-reverse_kl-") for name in names)
    time.strptime(names[0][:15], "%Y%m%d-%H%M%S")
    assert "-sft-" in _new(tmp_path, algorithm="sft").path.name


def test_name_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    assert _new(tmp_path, name="a").path == tmp_path / "a"
    config = launch.checked({"name": "b"})
    assert launch.new_run(tmp_path, config, LAB).path == tmp_path / "b"
    with pytest.raises(RunError, match="exists already"):
        _new(tmp_path, name="a")


def test_config_says_everything_that_was_asked(tmp_path: Path) -> None:
    saved = _new(tmp_path, name="a", loss="kl", steps=5).config()
    assert saved["loss"] == "forward_kl" and saved["steps"] == 5
    assert saved["lab"] == LAB and "torch" in saved["versions"]
    assert "parent" not in saved
    again = DistillConfig.parse(**{name: saved[name] for name in DistillConfig.model_fields})
    assert again == launch.checked({"loss": "kl", "steps": 5})


def test_data_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    saved = _new(tmp_path, name="a", data="rows.jsonl", eval_data="rows.jsonl").config()
    assert saved["data"] == saved["eval_data"] == str(tmp_path / "rows.jsonl")
    saved = _new(tmp_path, name="b", data="zoo/tasks", eval_data="org/set").config()
    assert (saved["data"], saved["eval_data"]) == ("zoo/tasks", "org/set")
    saved = _new(tmp_path, name="c", data=[{"text": "x"}]).config()
    assert saved["data"] == str(tmp_path / "c" / "data.parquet")


def test_several_data_sets_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "x"}]
    data = [
        {"data": "rows.jsonl", "weight": 3},
        {"data": rows, "weight": 1, "split": "mine"},
        {"data": "zoo/tasks", "weight": 1, "rows": 5},
    ]
    config = launch.checked({"data": data})
    directory = launch.new_run(tmp_path, config, LAB, name="a")
    file = str(tmp_path / "a" / "data-1.parquet")
    saved = directory.config()["data"]
    assert saved == [
        {"data": str(tmp_path / "rows.jsonl"), "weight": 3.0},
        {"data": file, "weight": 1.0, "split": "mine"},
        {"data": "zoo/tasks", "weight": 1.0, "rows": 5},
    ]
    assert launch.held_here(config, directory) == [(rows, file, "mine")]
    assert launch.checked({"data": saved}).weights == [3.0, 1.0, 1.0]
    one = launch.checked({"data": rows})
    directory = launch.new_run(tmp_path, one, LAB, name="b")
    assert launch.held_here(one, directory) == [
        (rows, str(tmp_path / "b" / "data.parquet"), "train")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"los": "kl"}, "Unknown option 'los'. Did you mean 'loss'"),
        ({"loss": "forwrd_kl"}, "Unknown divergence 'forwrd_kl'. Did you mean 'forward_kl'"),
        ({"algorithm": "vanila_kd"}, "Did you mean 'vanilla_kd'"),
        ({"steps": 0}, "Option 'steps' = 0"),
    ],
)
def test_wrong_option_is_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        launch.checked(options)
    assert list(tmp_path.iterdir()) == []


# -- forks ----------------------------------------------------------------------------------------


def test_fork_has_the_settings_in_force_at_its_step(tmp_path: Path) -> None:
    parent = _parent(tmp_path, lr=0.001, steps=30, batch_size=8)
    at_20, at_10 = _fork(parent).config(), _fork(parent, 10).config()
    assert (at_20["lr"], at_20["parent"]["step"]) == (0.015, 20)
    # `set` at 11 is in force at the first step after the checkpoint of step 10
    assert (at_10["lr"], at_10["parent"]["step"]) == (0.011, 10)
    assert at_10["parent"]["run"] == str(parent.path)
    assert (at_10["batch_size"], at_10["steps"], at_10["name"]) == (8, 30, None)
    changed = _fork(parent, 10, lr=0.5, loss="rkl").config()
    assert (changed["lr"], changed["loss"]) == (0.5, "reverse_kl")


def test_forks_of_one_run_get_names_that_are_free(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    names = [_fork(parent).path.name for _ in range(3)]
    assert names == ["parent-fork1", "parent-fork2", "parent-fork3"]
    shutil.rmtree(tmp_path / "parent-fork1")
    assert _fork(parent).path.name == "parent-fork1"
    assert _fork(parent).path.name == "parent-fork4"
    assert _fork(parent, name="mine").path.name == "mine"
    with pytest.raises(RunError, match="exists already"):
        _fork(parent, name="mine")


@pytest.mark.parametrize(
    ("options", "changes", "steps", "epochs"),
    [
        ({"steps": 30}, {}, 30, None),
        ({}, {}, 40, None),  # neither was given: what one epoch came to
        ({"epochs": 2.0}, {}, 40, None),
        ({"epochs": 2.0}, {"steps": 25}, 25, None),
        ({"steps": 30}, {"epochs": 3.0}, None, 3.0),
        ({"epochs": 2.0}, {"epochs": 3.0}, None, 3.0),
    ],
)
def test_length_of_a_fork(
    tmp_path: Path,
    options: dict[str, Any],
    changes: dict[str, Any],
    steps: int | None,
    epochs: float | None,
) -> None:
    saved = _fork(_parent(tmp_path, **options), **changes).config()
    assert (saved["steps"], saved["epochs"]) == (steps, epochs)


@pytest.mark.parametrize("options", [{"steps": 30}, {"epochs": 2.0}, {}])
def test_length_that_was_set_counts_from_its_step_on(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    parent = _parent(tmp_path, **options)
    parent.event("set", step=18, changes={"steps": 60})
    assert _fork(parent, 20).config()["steps"] == 60
    assert _fork(parent, 10).config()["steps"] == options.get("steps", 40)
    assert _fork(parent, 20, epochs=5.0).config()["epochs"] == 5.0


def test_fork_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a has no checkpoint yet.*run\.checkpoint\(\)"):
        _fork(_new(tmp_path, name="a"))
    parent = _parent(tmp_path, steps=30)
    with pytest.raises(RunError, match=r"step 13; the nearest is of step 10.*are: 10, 20"):
        _fork(parent, 13)
    with pytest.raises(RunError, match=r"20 of 15 steps.*nothing is left.*more than 20"):
        _fork(parent, steps=15)
    with pytest.raises(ConfigError, match="either steps or epochs"):
        _fork(parent, steps=50, epochs=1.0)
    (parent.checkpoints / "20" / "weights").write_bytes(b"short")
    with pytest.raises(RunError, match=r"damaged.*Pass another step.*: 10"):
        _fork(parent)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "parent"}


# -- the checkpoint of a fork ---------------------------------------------------------------------


def test_fork_keeps_its_checkpoint_when_the_parent_removes_it(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    fork = _fork(parent, 10)
    mine, theirs = fork.checkpoints / "10", parent.checkpoints / "10"
    assert os.path.samefile(mine / "weights", theirs / "weights")  # no second copy on the disk
    assert checkpoints.prune(parent, keep_last=1, best=None) == [10]
    assert not theirs.exists()
    assert checkpoints.check(mine) == ""
    assert (mine / "weights").read_bytes() == b"x" * 10
    assert fork.checkpoint_steps() == [10]
    assert [path.name for path in fork.checkpoints.iterdir()] == ["10"]


def test_checkpoint_is_copied_where_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", other_disk)
    fork = _fork(_parent(tmp_path, steps=30), 10)
    assert checkpoints.check(fork.checkpoints / "10") == ""


def test_fork_whose_checkpoint_goes_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = _parent(tmp_path, steps=30)
    new_run = launch.new_run

    def slow(*arguments: Any, **options: Any) -> RunDirectory:
        checkpoints.prune(parent, keep_last=1, best=None)
        return new_run(*arguments, **options)

    monkeypatch.setattr(launch, "new_run", slow)
    with pytest.raises(RunError, match=r"was removed meanwhile\. Fork again from a later one"):
        _fork(parent, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


# -- resuming -------------------------------------------------------------------------------------


def test_changes_of_a_resume_hold_from_the_checkpoint_on(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    launch.prepare_resume(parent, {"lr": "2e-3", "loss": "rkl"})
    line = settings.timeline(parent.events())
    assert settings.in_force(line, 21) == {"lr": 2e-3, "loss": "reverse_kl"}
    assert settings.in_force(line, 20) == {"lr": 0.015}
    assert parent.events()[-1]["by"] == f"pid {os.getpid()}"


def test_changes_hold_from_the_newest_whole_checkpoint_on(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    (parent.checkpoints / "20" / "weights").write_bytes(b"short")
    launch.prepare_resume(parent, {"lr": 1.0})
    assert parent.events()[-1]["step"] == 11


def test_resume_without_changes_writes_nothing(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    before = parent.events()
    launch.prepare_resume(parent, {})
    assert parent.events() == before


def test_run_without_a_checkpoint_is_resumed_from_the_start(tmp_path: Path) -> None:
    directory = _new(tmp_path, name="a")
    directory.event("starting")
    directory.event("failed", reason="x")
    launch.prepare_resume(directory, {"lr": 0.1})
    assert directory.events()[-1]["step"] == 1


def test_active_run_is_not_resumed(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=30)
    parent.event("starting", attempt=2)
    parent.event("started", attempt=2, from_step=20, steps=30)
    with held(parent.path), pytest.raises(RunError, match="parent is running: there is nothing"):
        launch.prepare_resume(parent, {})
    launch.prepare_resume(parent, {})  # its process died without a word
    parent.event("paused")
    parent.event("parked")
    launch.prepare_resume(parent, {})


def test_finished_run_wants_more_steps(tmp_path: Path) -> None:
    parent = _parent(tmp_path, steps=20)
    parent.event("finished", step=20)
    for changes in ({}, {"steps": 20}, {"steps": 5}, {"lr": 0.1}):
        with pytest.raises(RunError, match=r"finished its 20 steps.*resume\(steps=40\)"):
            launch.prepare_resume(parent, changes)
    launch.prepare_resume(parent, {"steps": 21})
    assert parent.events()[-1]["changes"] == {"steps": 21}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 4}, "Unknown setting 'batch_size'"),
        ({"lr": None}, "cannot be set to None"),
        ({"lr": -1}, "Option 'lr' = -1"),
    ],
)
def test_resume_refuses_changes_that_do_not_fit(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    parent = _parent(tmp_path, steps=30)
    with pytest.raises(ConfigError, match=words):
        launch.prepare_resume(parent, changes)
    assert parent.events()[-1]["event"] == "stopped"


def test_config_file_is_for_people(tmp_path: Path) -> None:
    directory = _new(tmp_path, name="a", steps=5)
    assert list(yaml.safe_load(directory.config_file.read_text()))[:2] == ["schema", "data"]


# -- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ({}, {"lora_r": 8}),
        ({"lora_r": 8}, {"lora_r": 4}),
        ({"lora_r": 8}, {"lora_alpha": 8.0}),
        ({"lora_r": 8}, {"lora_dropout": 0.1}),
        ({"lora_r": 8}, {"lora_target_modules": ["q_proj"]}),
    ],
)
def test_fork_that_would_train_other_weights_is_refused(
    tmp_path: Path, before: dict[str, Any], change: dict[str, Any]
) -> None:
    parent = _parent(tmp_path, **before)
    (name,) = change
    with pytest.raises(ConfigError, match=f"{name} is .* in parent and .* what is trained must"):
        _fork(parent, **change)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_fork_keeps_its_parents_adapters(tmp_path: Path) -> None:
    parent = _parent(tmp_path, lora_r=8, lora_target_modules=["q_proj"])
    same: dict[str, Any] = {"lora_r": 8, "lora_target_modules": ["q_proj"]}
    other: dict[str, Any] = {"lr": 1e-5}
    for changes in (other, same):
        config = _fork(parent, **changes).config()
        assert (config["lora_r"], config["lora_alpha"]) == (8, 16.0)
        assert config["lora_target_modules"] == ["q_proj"]
