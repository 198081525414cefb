"""The quickstart as a person meets it: JupyterLab, the growing curve, and the three buttons."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_in_browser import LabPage, LabServer

from kdflow_lab.rundir import RunDirectory, list_runs

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"
SHORT = {"KDFLOW_STEPS": "600", "KDFLOW_PROMPTS": "400", "KDFLOW_ROWS": "60"}
POINTS = """() => {
    const plots = document.querySelectorAll('.js-plotly-plot');
    return plots.length ? Math.max(0, ...plots[0].data.map(trace => (trace.x || []).length)) : 0;
}"""


@pytest.fixture(scope="module")
def jupyterlab_server(
    chromium: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabServer]:
    """A server whose kernels find the short setting in their environment."""
    folder = tmp_path_factory.mktemp("quickstart")
    places = {"KDFLOW_OUT": str(folder / "out"), "KDFLOW_RUNS": str(folder / "runs")}
    server = LabServer(folder, env={**SHORT, **places})
    shutil.copy(NOTEBOOK, server.root)
    yield server
    assert server.stop() == [], "processes outlived JupyterLab"


def _state(page: LabPage, state: str, *, timeout_s: float = 30) -> None:
    page.page.wait_for_selector(
        f".kdflow-status .state[data-state='{state}']", timeout=timeout_s * 1000
    )


def _run_directory(server: LabServer) -> RunDirectory:
    return next(iter(list_runs(server.root.parent / "runs")))


def _steps(run: RunDirectory) -> int:
    return len(run.metrics_file.read_text(encoding="utf-8").splitlines())


@pytest.mark.timeout(400)
def test_quickstart_in_jupyterlab(browser_page: LabPage) -> None:
    page, server = browser_page.page, browser_page.server
    browser_page.open(NOTEBOOK.name)
    browser_page.run_all()

    _state(browser_page, "running", timeout_s=150)
    page.locator(".kdflow-status").first.scroll_into_view_if_needed()
    run = _run_directory(server)
    seen: list[int] = []
    deadline = time.monotonic() + 90
    while len(seen) < 4:  # it grew three times, each time while the run said that it runs
        assert time.monotonic() < deadline, f"the curve grew to {seen} points only"
        points = page.evaluate(POINTS)
        if points > (seen[-1] if seen else 0) and run.state() == "running":
            seen.append(points)
        page.wait_for_timeout(300)

    page.click(".kdflow-status button.pause")
    _state(browser_page, "paused")
    steps = _steps(run)
    page.wait_for_timeout(1500)
    assert _steps(run) == steps
    assert run.state() == "paused"
    points = page.evaluate(POINTS)
    browser_page.screenshot("quickstart_paused")

    page.click(".kdflow-status button.resume")
    _state(browser_page, "running")
    page.wait_for_function(f"({POINTS})() > {points}", timeout=30_000)
    assert _steps(run) > steps
    browser_page.screenshot("quickstart_running")

    page.click(".kdflow-status button.stop")
    browser_page.wait_for_output(r"stopped", timeout_s=30)
    assert run.state() == "stopped"
    kinds = [event["event"] for event in run.events()]
    assert kinds.index("paused") < kinds.index("resumed") < kinds.index("stopping")

    # the rest of the notebook goes on with what was learnt until then
    browser_page.wait_for_output(r"quickstart\.json", timeout_s=200)
    browser_page.screenshot("quickstart_done")
    results = json.loads((server.root.parent / "out" / "quickstart.json").read_text())
    assert results["student_after"]["kl"] < results["student_before"]["kl"]
    assert browser_page.external_requests == []
    assert browser_page.errors == []
