"""The probes of a run over time, as a viewer polls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import FINISHED, running, write_run
from inspections import WORDS, random_arrays, write_probes
from safetensors.numpy import save_file

from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.evaluate.run_probes import RunProbes, checked_probes
from kdflow_lab.run import Run


def _probe(run: Run, step: int, *, seed: int | None = None) -> None:
    """Write a step's probes as a run does."""
    path = write_probes(run.path, step, seed=seed)
    run.directory.event("probes", step=step, path=str(path))


def test_new_probes_appear_while_the_run_goes_on(tmp_path: Path) -> None:
    with running(tmp_path / "a") as run:
        probes = run.probes
        assert (probes.steps, probes.newest, probes.live) == ([], None, True)
        _probe(run, 10)
        _probe(run, 0)
        assert (probes.steps, probes.newest) == ([0, 10], 10)
        (run.path / "probes" / ".20.safetensors.tmp").write_bytes(b"half")  # not there yet
        assert probes.steps == [0, 10]
        found = probes.at(10)
        assert (found.name, found.step, found.note) == ("a", 10, "")
        np.testing.assert_array_equal(
            found.values("forward_kl"), random_arrays(seed=10)["forward_kl"]
        )
        assert found.text(4) == WORDS[4]
        assert probes.at(10) is found
    assert not write_run(tmp_path / "b", FINISHED).probes.live


def test_a_step_that_is_looked_at_again_is_read_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    _probe(run, 3)
    probes = run.probes
    before = probes.at(3)
    _probe(run, 3, seed=99)
    path = run.path / "probes" / "3.safetensors"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))  # a clock of coarse ticks
    assert not np.array_equal(probes.at(3).values("jsd"), before.values("jsd"))


def test_what_an_attempt_wrote_beyond_its_checkpoint_counts_no_more(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FINISHED)
    for step in (0, 20, 40, 60):
        _probe(run, step)
    probes = run.probes
    assert probes.steps == [0, 20, 40, 60]
    run.directory.event("started", attempt=2, from_step=30, steps=100)
    assert probes.steps == [0, 20]
    _probe(run, 40, seed=7)
    assert probes.steps == run.probes.steps == [0, 20, 40]
    run.directory.event("started", attempt=3, from_step=40, steps=100)
    assert probes.steps == [0, 20, 40]
    with pytest.raises(RunError, match=r"no probes of step 60\. There are: 0, 20, 40"):
        probes.at(60)


def test_probes_without_events_are_found(tmp_path: Path) -> None:
    """As in a folder that somebody copied."""
    run = write_run(tmp_path / "a")
    write_probes(run.path, 5)
    assert run.probes.steps == [5]


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    arrays = random_arrays()
    for name in [one for one in arrays if "logit" in one or "_of_" in one]:
        del arrays[name]
    path = tmp_path / "a" / "probes" / "8.safetensors"
    path.parent.mkdir(parents=True)
    save_file(arrays, path, metadata={"schema": "1", "step": "8", "temperature": "1", "k": "4"})
    found = RunProbes(tmp_path / "a").at(8)
    assert "forward_kl" in found.quantities and found.texts == {}
    assert found.frame["token"].iloc[0] == f"#{arrays['labels'][0]}"
    assert "student_logit" not in found.arrays


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    from kdflow_lab.evaluate import probe_file

    alone = random_arrays(teacher=False)
    for step, arrays in enumerate((alone, alone | {"forward_kl": alone["student_logprob"]})):
        probe_file.save(run.path / f"probes/{step}.safetensors", arrays, step=step, k=4)
    assert "no teacher" in run.probes.at(0).note
    assert "reads other tokens" in run.probes.at(1).note


def test_wrong_steps_and_quantities_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(RunError, match=r"a has no probes of step 4\. It has none yet\."):
        run.probes.at(4)
    for step in range(0, 200, 10):
        write_probes(run.path, step)
    with pytest.raises(RunError, match="0, 10, 20, 30, 40, 50 … 150, 160, 170, 180, 190"):
        checked_probes(run.path, 4, None)
    with pytest.raises(ConfigError, match="Did you mean 'forward_kl'"):
        checked_probes(run.path, None, "forward")
    assert checked_probes(run.path, 20, "rank").start == 20


def test_few_inspections_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdflow_lab.evaluate.run_probes.KEPT", 2)
    for step in range(4):
        write_probes(tmp_path / "a", step)
    probes = RunProbes(tmp_path / "a")
    first = probes.at(0)
    for step in (1, 0, 2):  # 1 was asked for longest ago
        probes.at(step)
    assert probes.at(0) is first and len(probes._kept) == 2


def test_a_kernel_reads_probes_without_torch(tmp_path: Path) -> None:
    write_probes(tmp_path / "a", 2)
    code = (
        "import sys; from kdflow_lab.evaluate.run_probes import RunProbes; "
        f"print(RunProbes({str(tmp_path / 'a')!r}).at(2).worst('rank')); "
        "print([one for one in ('torch', 'transformers', 'IPython') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
