"""What a sweep starts, and what it says of runs that have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdflow_lab import launch
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.run import Run
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.sweep import NEVER, Sweep, spanned, start


def test_every_combination_is_a_run_the_last_option_fastest() -> None:
    made, varied = spanned({"loss": ["jsd", "tvd"], "steps": 5, "lr": [0.1, 0.2]})
    assert varied == ["loss", "lr"]
    assert [(one["loss"], one["lr"], one["steps"]) for one in made] == [
        ("jsd", 0.1, 5),
        ("jsd", 0.2, 5),
        ("tvd", 0.1, 5),
        ("tvd", 0.2, 5),
    ]


def test_option_that_is_a_list_itself_varies_as_a_list_of_lists() -> None:
    made, varied = spanned({"betas": (0.9, 0.98), "lr": [1.0, 2.0]})
    assert varied == ["lr"] and made[0]["betas"] == (0.9, 0.98)
    made, varied = spanned({"betas": [(0.9, 0.98), (0.9, 0.999)], "data": [{"text": "a"}]})
    assert varied == ["betas"] and made[1]["data"] == [{"text": "a"}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.1}, "Nothing varies"),
        ({"lr": []}, "no value"),
        ({"lr": [0.1, 0.1]}, "one value twice"),
        ({"lr": list(range(1, 10)), "seed": list(range(9))}, "81 runs; expected at most 64"),
    ],
)
def test_sweep_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spanned(options)


def test_all_runs_are_checked_before_one_starts() -> None:
    started: list[dict[str, Any]] = []

    def distill(**options: Any) -> Run:
        started.append(options)
        raise AssertionError("nothing may start")

    with pytest.raises(ConfigError, match=r"Did you mean 'reverse_kl'"):
        start({"loss": ["jsd", "revers_kl"]}, check=launch.checked, distill=distill)
    assert started == []


def test_runs_get_a_cache_where_they_can_have_one_and_names() -> None:
    asked: list[dict[str, Any]] = []

    def distill(**options: Any) -> Run:
        asked.append(options)
        return Run(Path("nowhere"))

    start(
        {"algorithm": ["vanilla_kd", "sft"], "lr": [1e-3]},
        check=launch.checked,
        distill=distill,
    )
    assert [one["cache"] for one in asked] == [True, False]
    assert [one["name"] for one in asked] == ["sweep-1-vanilla_kd-0.001", "sweep-2-sft-0.001"]
    assert {one["eval_every"] for one in asked} == {NEVER}


def _run(path: Path, *, kl: float, agreement: float, state: str = "finished") -> Run:
    directory = RunDirectory(path)
    directory.create({"steps": 2})
    for step, cached in ((1, 0.5), (2, 1.0)):
        directory.metrics(
            {"step": step, "attempt": 1, "tokens": 10 * step, "step_s": 0.5, "cached": cached}
        )
    directory.event("evaluated", step=2, kl=kl, agreement=agreement, perplexity=3.0)
    directory.event(state, reason="<b>why</b>")
    return Run(path)


def test_table_and_best(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "a", kl=0.5, agreement=0.6),
        _run(tmp_path / "b", kl=0.4, agreement=0.5),
    ]
    sweep = Sweep(runs, [{"loss": "<i>"}, {"loss": "tvd"}])
    frame = sweep.frame
    assert frame["kl"].tolist() == [0.5, 0.4] and frame["tokens_per_s"].tolist() == [30.0, 30.0]
    assert sweep.lines[0]["cached"] == pytest.approx((0.5 * 10 + 20) / 30)
    assert sweep.best() is runs[1] and sweep.best("agreement") is runs[0]
    shown = sweep._repr_html_()
    assert "&lt;i&gt;" in shown and "<i>" not in shown
    assert "<strong>0.4</strong>" in shown and "<strong>60.0%</strong>" in shown
    with pytest.raises(ConfigError, match=r"no score 'klx'|has a score 'klx'.*Did you mean 'kl'"):
        sweep.best("klx")
    assert len(sweep) == 2 and list(sweep) == runs and "tvd" in repr(sweep)


def test_run_that_failed_is_said_when_all_have_ended(tmp_path: Path) -> None:
    failed = _run(tmp_path / "a", kl=0.5, agreement=0.6, state="failed")
    sweep = Sweep([failed, _run(tmp_path / "b", kl=1.0, agreement=0.0)], [{}, {}])
    with pytest.raises(RunError, match="a failed"):
        sweep.wait()
