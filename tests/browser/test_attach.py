"""A run outlives its kernel: restart from the menu, attach, change, pause, fork, compare."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lab_in_browser import LabPage, LabServer, wait_until
from leftovers import processes_of, wait_until_gone
from nbformat import v4

from kdflow_lab.rundir import RunDirectory, list_runs

NOTEBOOK = "attach.ipynb"
CELLS = (
    "%load_ext kdflow_lab\n%kdflow up --teacher zoo/teacher --student zoo/student",
    "%%kdflow distill\nrows: 400\nbatch_size: 16\nsteps: 4000\nlr: 0.001\nscheduler: constant\n"
    "name: base\ncheckpoint_every: 100\neval_every: 100",
    "%load_ext kdflow_lab\n%kdflow attach",
    "%kdflow set --lr 0.0003",
    "%kdflow pause",
    "run = lab.runs[-1]\n%kdflow fork --loss reverse_kl --steps {run.step + 250} --name fork",
    "await lab.runs[-1]\n%kdflow compare",
    "%kdflow runs",
    "print(lab.runtime_dir, 'CLOSED')\n%kdflow down",
)
ATTACH, SET, PAUSE, FORK, COMPARE, RUNS, DOWN = range(2, 9)
POINTS = """number => {
    const plots = document.querySelectorAll('.js-plotly-plot');
    const plot = plots[number];
    return plot ? Math.max(0, ...plot.data.map(trace => (trace.x || []).length)) : 0;
}"""
FIRST = """number => {
    const plot = document.querySelectorAll('.js-plotly-plot')[number];
    return Math.min(...plot.data.filter(t => (t.x || []).length).map(t => Math.min(...t.x)));
}"""


@pytest.fixture(scope="module")
def jupyterlab_server(
    chromium: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabServer]:
    """A server with the notebook, whose runs lie beside it."""
    folder = tmp_path_factory.mktemp("attach")
    server = LabServer(folder, env={"KDFLOW_RUNS": str(folder / "runs")})
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in CELLS])
    nbformat.write(notebook, server.root / NOTEBOOK)
    yield server
    assert server.stop() == [], "processes outlived JupyterLab"


def _run(server: LabServer, name: str, *, seconds: float = 60) -> RunDirectory:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for run in list_runs(server.root.parent / "runs"):
            if run.path.name == name:
                return run
        time.sleep(0.1)
    raise AssertionError(f"there is no run {name}")


def _steps(run: RunDirectory) -> int:
    file = run.metrics_file
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


@pytest.mark.timeout(300)
def test_run_outlives_its_kernel_and_is_taken_up_again(browser_page: LabPage) -> None:
    page, server = browser_page.page, browser_page.server
    browser_page.open(NOTEBOOK)
    browser_page.run_cell(0)
    browser_page.wait_for_output(r"up \(lab-")
    browser_page.run_cell(1)
    run = _run(server, "base")
    wait_until(lambda: _steps(run) >= 150, "the run trains", seconds=60)

    browser_page.restart_kernel()
    steps = _steps(run)
    wait_until(lambda: _steps(run) >= steps + 20, "the run goes on without its kernel", seconds=10)
    assert run.state() == "running"

    browser_page.run_cell(ATTACH)
    live = 1  # the second figure on the page; the first is the dead kernel's, and stands still
    page.wait_for_function(f"({POINTS})({live}) > 150", timeout=40_000)
    assert page.evaluate(FIRST, live) == 1  # the curve is whole
    seen = page.evaluate(POINTS, live)
    page.wait_for_function(f"({POINTS})({live}) > {seen}", timeout=20_000)
    browser_page.screenshot("attach_running")

    browser_page.run_cell(SET)
    wait_until(
        lambda: any(event["event"] == "set" for event in run.events()), "lr is changed", seconds=60
    )
    browser_page.run_cell(PAUSE)
    wait_until(lambda: run.state() == "paused", "the run pauses", seconds=60)
    wait_until(lambda: bool(run.checkpoint_steps()), "a pause writes a checkpoint", seconds=60)
    browser_page.screenshot("attach_paused")

    browser_page.run_cell(FORK)
    fork = _run(server, "fork")
    parent_step = fork.config()["parent"]["step"]
    assert parent_step == run.checkpoint_steps()[-1]
    browser_page.run_cell(COMPARE)
    wait_until(lambda: fork.state() == "finished", "the fork trains", seconds=90)
    assert run.state() == "paused"
    assert run.last_word()["event"] == "parked"
    browser_page.wait_for_output(r"forked from", timeout_s=30)
    browser_page.run_cell(RUNS)
    browser_page.wait_for_output(rf"base@{parent_step}")
    page.wait_for_timeout(1000)
    browser_page.screenshot("attach_compared")

    browser_page.run_cell(DOWN)
    folder = Path(browser_page.wait_for_output(r"(\S+) CLOSED").group(1))
    assert wait_until_gone(folder, seconds=10) == []
    assert processes_of(folder) == []
    assert browser_page.external_requests == []
    assert browser_page.errors == []
