"""Checkpoints on real ranks: a run that goes on from one is the run that went on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpointing
import pytest
import torch
from ranks import on_ranks
from small_disk import run_on_small_disk

from kdflow_lab import checkpoints
from kdflow_lab.errors import RunError
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.export import load_hf

WORLDS = (1, 2)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with checkpointing.in_folder() as made:
        yield made


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[int, list[Any]]:
    """What each rank of one and of two had when it saved."""
    return {n: on_ranks(n, checkpointing.saves, folder) for n in WORLDS}


@pytest.fixture(scope="module")
def loaded(folder: Path, saved: Any) -> dict[int, list[Any]]:
    """What each rank of one and of two had when it loaded, by the ranks that had saved."""
    return {n: on_ranks(n, checkpointing.loads, folder) for n in WORLDS}


def _differ(a: dict[str, Any], b: dict[str, Any], **tolerance: Any) -> list[str]:
    """Names of what is not the same; exactly, if no tolerance is given."""
    assert a.keys() == b.keys() and len(a) > 20
    exact: Any = {"rtol": 0.0, "atol": 0.0}
    return [name for name in a if not torch.allclose(a[name], b[name], **(tolerance or exact))]


@pytest.mark.parametrize("world_size", WORLDS)
def test_loaded_student_is_the_saved_one_and_takes_the_same_next_step(
    saved: dict[int, list[Any]], loaded: dict[int, list[Any]], world_size: int
) -> None:
    for before, after in zip(saved[world_size], loaded[world_size], strict=True):
        found = after[world_size]
        assert _differ(before["saved"], found["loaded"]) == []
        assert _differ(before["next"], found["next"]) == []
        assert found["kept"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_ranks_have_random_numbers_of_their_own(
    saved: dict[int, list[Any]], loaded: dict[int, list[Any]]
) -> None:
    first, second = (rank["saved"]["random"] for rank in saved[2])
    assert not torch.equal(first, second)
    first, second = (rank[1]["loaded"]["random"] for rank in loaded[2])  # saved by one rank
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("writers", "readers"), [(1, 2), (2, 1)])
def test_other_number_of_ranks_reads_the_same(
    saved: dict[int, list[Any]], loaded: dict[int, list[Any]], writers: int, readers: int
) -> None:
    for rank in loaded[readers]:
        found = rank[writers]
        assert _differ(saved[writers][0]["saved"], found["loaded"]) == ["random"]
        # the next step sums the same gradients in another order
        differ = _differ(saved[writers][0]["next"], found["next"], rtol=1e-4, atol=1e-5)
        assert set(differ) <= {"random"}


def test_state_says_what_is_in_it(folder: Path, loaded: dict[int, list[Any]]) -> None:
    said = loaded[1][0][2]["said"]
    assert (said["step"], said["ranks"], said["why"]) == (20, 2, "a test")
    path = folder / "run" / "checkpoints" / "20"
    files = {file.name: file.stat().st_size for file in path.iterdir()}
    assert said["files"] == {name: size for name, size in files.items() if name != "state.json"}
    events = [one for one in RunDirectory(folder / "run").events() if one["event"] == "checkpoint"]
    assert [one["step"] for one in events[:2]] == [10, 20]
    assert events[1]["bytes"] == sum(files.values())


def test_checkpoint_before_the_first_update_changes_nothing(folder: Path, saved: Any) -> None:
    """Also one after a first step that was left out, which has gradients and no moments."""
    (found,) = on_ranks(1, checkpointing.pauses_before_the_first_update, folder)
    for name in ("saved 1", "loaded 1", "saved 2", "loaded 2"):
        assert set(_differ(found["straight"], found[name])) <= {"random"}, name
    for step in (1, 2):
        shutil.rmtree(folder / "run" / "checkpoints" / str(step))


def test_every_rank_learns_that_it_cannot_be_written_or_read(folder: Path, saved: Any) -> None:
    ranks = on_ranks(2, checkpointing.fails, folder)
    assert ranks[0] == ranks[1]
    written, read = ranks[0]
    assert "checkpoint of step 1 cannot be written: " in written
    assert "Earlier ones are untouched" in written
    assert "20 cannot be read" in read and "Expected one of the same student" in read


@pytest.mark.parametrize("world_size", WORLDS)
def test_model_of_a_checkpoint_needs_no_group(
    folder: Path, saved: dict[int, list[Any]], world_size: int
) -> None:
    model = load_hf(RunDirectory(folder / "run"), step=checkpointing.step_of(world_size))
    weights = saved[world_size][0]["saved"]
    for name, values in model.named_parameters():
        assert torch.equal(values, weights[f"weight {name}"])


def test_model_of_another_shape_is_refused(copied: RunDirectory, folder: Path) -> None:
    lab = {"student": str(folder / "teacher"), "trust_remote_code": False}
    copied.config_file.write_text(json.dumps({"lab": lab}))  # JSON is YAML
    with pytest.raises(RunError, match=r"20 cannot be read: .*Size mismatch.*the same student"):
        load_hf(copied)


FULL_DISK = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import checkpointing, one_step
from ranks import on_ranks
from kdflow_lab import checkpoints
from kdflow_lab.errors import RunError
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.export import load_hf

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "models").mkdir()
    one_step.make_models(folder / "models", tied=True)
    directory = RunDirectory(folder / "run")
    directory.create({{}})
    first, second = on_ranks(2, checkpointing.fills_the_disk, folder)
    step, said = first
    assert second[0] == step  # no rank thinks that it could be written
    print(said)
    print(second[1])
    left = sorted(path.name for path in directory.checkpoints.iterdir())
    assert left == sorted(str(one) for one in range(1, int(step))), left
    assert int(step) > 1 and checkpoints.newest_whole(directory)[0].name == str(int(step) - 1)
"""


def test_full_disk_leaves_the_earlier_checkpoints_and_nothing_half(tmp_path: Path) -> None:
    script = FULL_DISK.format(paths=[str(Path(checkpointing.__file__).parent)])
    told = run_on_small_disk(script, tmp_path / "disk", kib=512).splitlines()
    assert len(told) == 2
    for said in told:
        assert "cannot be written: " in said and "No space left on device" in said
        assert "Earlier ones are untouched" in said


# -- which one to take ----------------------------------------------------------------------------


@pytest.fixture
def copied(folder: Path, saved: Any, tmp_path: Path) -> RunDirectory:
    """A run with the checkpoints of steps 10 and 20, to be spoilt."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def _spoil(path: Path, how: str) -> None:
    file = next(path.glob("*.distcp"))
    if how == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "missing":
        file.unlink()
    elif how == "torn state":
        (path / "state.json").write_text('{"step": 20, "fil')
    elif how == "no state":
        (path / "state.json").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("shorter", r"is damaged: __\d_\d\.distcp has [\d,]+ bytes, expected [\d,]+\."),
        ("missing", r"is damaged: __\d_\d\.distcp has 0 bytes"),
        ("torn state", r"is no whole checkpoint: "),
        ("no state", None),  # it does not count as one at all
    ],
)
def test_damaged_checkpoint_is_not_taken(copied: RunDirectory, how: str, words: str | None) -> None:
    path = copied.checkpoints / "20"
    assert checkpoints.newest_whole(copied) == (path, [])
    _spoil(path, how)
    taken, problems = checkpoints.newest_whole(copied)
    assert taken == copied.checkpoints / "10"
    assert len(problems) == (words is not None)
    if words is not None:
        assert re.search(words, problems[0])


def test_run_without_a_whole_checkpoint_has_none(copied: RunDirectory) -> None:
    for step in (10, 20):
        _spoil(copied.checkpoints / str(step), "missing")
    taken, problems = checkpoints.newest_whole(copied)
    assert taken is None and len(problems) == 2


def _steps(directory: RunDirectory, *steps: int) -> None:
    for step in steps:
        (directory.checkpoints / str(step)).mkdir(parents=True)
        state = {"step": step, "files": {}}
        (directory.checkpoints / str(step) / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("keep_last", "best", "left"),
    [(1, None, [5]), (2, None, [4, 5]), (2, 1, [1, 4, 5]), (1, 5, [5]), (9, None, [1, 2, 3, 4, 5])],
)
def test_prune_keeps_the_newest_and_the_best(
    tmp_path: Path, keep_last: int, best: int | None, left: list[int]
) -> None:
    directory = RunDirectory(tmp_path)
    _steps(directory, 1, 2, 3, 4, 5)
    removed = checkpoints.prune(directory, keep_last=keep_last, best=best)
    assert directory.checkpoint_steps() == left
    assert removed == [step for step in range(1, 6) if step not in left]
    assert sorted(path.name for path in directory.checkpoints.iterdir()) == list(map(str, left))


def test_tidy_clears_up_behind_an_attempt_that_died(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    _steps(directory, 1, 2, 3)
    for name in (".4.tmp", ".0.old"):
        (directory.checkpoints / name).mkdir()
    checkpoints.tidy(directory, directory.checkpoints / "2")
    assert directory.checkpoint_steps() == [1, 2]
    names = {path.name for path in directory.checkpoints.iterdir()}
    assert names == {"1", "2", ".3.damaged"}
    _steps(directory, 3)
    checkpoints.prune(directory, keep_last=1, best=None)
    assert [path.name for path in directory.checkpoints.iterdir()] == ["3"]
