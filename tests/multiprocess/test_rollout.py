"""Rollouts between processes: sharded students, an engine of its own, and its death."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rollout_ranks
import tiny_models as models
from faults import events, fails_soon, pids, reach, send, training, wait_for
from leftovers import left_in_shared_memory, shared_memory, wait_until_gone
from ranks import on_ranks
from rollout_engine import rollout_engine

import kdflow_lab as kd

ON_POLICY = {"on_policy": True, "max_new_tokens": 16, "checkpoint_every": 1000}


@pytest.fixture
def socket() -> Iterator[Path]:
    """Where an engine may listen, whose /dev/shm is looked at."""
    before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        yield Path(folder) / "rollout.sock"
    assert left_in_shared_memory(before) == set()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_two_ranks_hand_over_is_what_answers(
    family: str, tmp_path: Path, socket: Path
) -> None:
    """Untied and tied heads; log-probabilities are the student's own right after each sync."""
    folder = models.write_model(family, tmp_path / "model")
    with rollout_engine("transformers", folder, socket):
        first, other = on_ranks(2, rollout_ranks.hand_over, str(folder), str(socket), [3, 4])
        if family == "llama":  # the engine serves one job after another, with the same answers
            again, _ = on_ranks(2, rollout_ranks.hand_over, str(folder), str(socket), [3, 4])
            assert [one.answers for one in again] == [one.answers for one in first]
    assert other == []
    assert [one.version for one in first] == [3, 4]
    for synced in first:
        assert synced.apart < 1e-4
        assert synced.right
    assert first[0].answers != first[1].answers


def test_shards_of_different_sizes_come_whole() -> None:
    """In buckets of a row, of a few rows, and of everything."""
    assert on_ranks(2, rollout_ranks.uneven_shards, [1, 40, 1 << 20]) == [True, True]


def test_adapters_are_merged_shard_by_shard(tmp_path: Path) -> None:
    folder = models.write_model("qwen3", tmp_path / "model")
    apart, _ = on_ranks(2, rollout_ranks.merged_shards, str(folder))
    assert apart < 1e-5


def test_all_ranks_are_told_of_a_dead_engine(tmp_path: Path, socket: Path) -> None:
    folder, killed = models.write_model("llama", tmp_path / "model"), tmp_path / "killed"
    with rollout_engine("transformers", folder, socket) as engine:

        def kill() -> None:
            wait_for(killed.with_suffix(".go").exists)
            engine.kill()
            engine.wait()
            killed.touch()

        thread = threading.Thread(target=kill)
        thread.start()
        told = on_ranks(2, rollout_ranks.told_of_death, str(folder), str(socket), str(killed))
        thread.join()
    for text in told:
        assert text.startswith(f"TransportError: The rollout engine (pid {engine.pid}) died"), told


# -- in a lab ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kd.Lab]:
    """A lab with two students whose supervisor may be killed at the end."""
    folder = tmp_path_factory.mktemp("runs")
    lab = kd.Lab("zoo/teacher", "zoo/student", students=2, threads=1, dir=str(folder))
    yield lab
    lab.close()


def test_the_engine_starts_with_the_first_run_that_needs_it(rolling: kd.Lab) -> None:
    rolling.up()
    assert "rollout" not in pids(rolling)
    assert "rollouts" not in str(rolling.status())
    before = pids(rolling)
    run = training(rolling, steps=3, at=3, **ON_POLICY)
    run.wait(60)
    assert pids(rolling) == {**before, "rollout": pids(rolling)["rollout"]}
    assert "transformers" in dict(rolling.status().lines)["rollouts"]


def test_a_run_goes_on_with_the_next_engine_when_one_is_killed(rolling: kd.Lab) -> None:
    run = training(rolling, at=2, **ON_POLICY)
    before = pids(rolling)
    killed = send(rolling, "rollout")
    reach(run, run.step + 4)
    (lost,), (back,) = events(run, "worker_lost"), events(run, "worker_back")
    assert (lost["roles"], lost["pids"]) == (["rollout"], [killed])
    after = pids(rolling)
    assert back["pids"] == [after["rollout"]]
    assert {role for role in after if after[role] != before[role]} == {"rollout"}
    run.stop()
    run.wait(60)
    assert list(run.metrics["step"]) == list(range(1, run.step + 1))  # none was lost


def test_an_idle_engine_may_die_while_another_run_goes_on(rolling: kd.Lab) -> None:
    run = training(rolling, at=2)
    send(rolling, "rollout")
    wait_for(lambda: rolling.status().state == "broken", what="a broken lab")
    assert "rollout" in dict(rolling.status().lines)["died"]
    reach(run, run.step + 3)
    run.stop()
    run.wait(60)
    assert run.state == "stopped"
    assert rolling.up().status().state == "up"
    assert training(rolling, steps=2, at=2, **ON_POLICY).wait(60).state == "finished"


def test_killed_students_and_a_killed_supervisor_leave_nothing(rolling: kd.Lab) -> None:
    before = shared_memory()
    run = training(rolling, at=1, **ON_POLICY)
    folder = rolling.runtime_dir
    assert folder is not None
    send(rolling, "student 1")
    assert "student 1" in fails_soon(run)
    run.resume()
    reach(run, run.step + 2)
    send(rolling, "supervisor")
    assert wait_until_gone(folder, seconds=10) == []
    assert left_in_shared_memory(before) == set()
