"""The dashboard of a run in JupyterLab: knobs, checkpoint, fork, who waits, memory, both themes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from lab_in_browser import LabPage, LabServer, wait_until
from nbformat import v4

from kdflow_lab.rundir import RunDirectory, list_runs

NOTEBOOK = "dashboard.ipynb"
CELLS = (
    "import kdflow_lab as kd\nfrom kdflow_lab.widgets import curves\n%load_ext kdflow_lab\n"
    "curves.FREED_AFTER_S = 2.0\n%kdflow up --teacher zoo/teacher --student zoo/student",
    "%%kdflow distill\nrows: 400\nbatch_size: 16\nsteps: 20000\nlr: 0.001\nscheduler: constant\n"
    "name: base",
    "%kdflow status base",
    "import plotly.graph_objects as go\nfrom ipywidgets.widgets import widget\n"
    "plots = [one for one in widget._instances.values() if isinstance(one, go.FigureWidget)]\n"
    "print('PLOTS', len(plots))",
    "%kdflow down\nprint('CLOSED')",
)
START, DISTILL, STATUS, COUNT, DOWN = range(5)
PLOTS = "document.querySelectorAll('.js-plotly-plot').length"
MARKS = """() => {
    const plots = [...document.querySelectorAll('.js-plotly-plot')];
    const marks = plots.at(-1).data.find(trace => trace.marker?.symbol === 'diamond');
    return [...(marks.text || [])];
}"""
STRIP = """() => {
    const plots = [...document.querySelectorAll('.js-plotly-plot')];
    const notes = plots.at(-1).layout.annotations.filter(note => /% idle$/.test(note.text));
    return notes.map(note => note.text);
}"""


@pytest.fixture(scope="module")
def jupyterlab_server(
    chromium: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabServer]:
    """A server with the notebook, whose runs lie beside it."""
    folder = tmp_path_factory.mktemp("dashboard")
    server = LabServer(folder, env={"KDFLOW_RUNS": str(folder / "runs")})
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in CELLS])
    nbformat.write(notebook, server.root / NOTEBOOK)
    yield server
    assert server.stop() == [], "processes outlived JupyterLab"


def _runs(server: LabServer) -> dict[str, RunDirectory]:
    return {run.path.name: run for run in list_runs(server.root.parent / "runs")}


def _events(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == kind]


@pytest.mark.timeout(180)
def test_dashboard_in_jupyterlab(browser_page: LabPage) -> None:
    page, server = browser_page.page, browser_page.server
    browser_page.open(NOTEBOOK)
    browser_page.run_cell(START)
    browser_page.wait_for_output(r"up \(lab-")
    browser_page.run_cell(DISTILL)
    run = wait_until(lambda: _runs(server).get("base"), "the run is there")
    head = page.locator(".kdflow-status").last
    page.wait_for_function(f"{PLOTS} > 0", timeout=40_000)
    head.locator(".state[data-state='running']").wait_for(timeout=30_000)

    def knob(name: str) -> Any:
        return head.locator(f"[data-knob='{name}']")

    # a knob is turned with the keyboard; the run answers, and the change is a mark on the curve
    knob("lr").locator("input").fill("0.0003")
    knob("lr").locator("input").press("Enter")
    (changed,) = wait_until(lambda: _events(run, "set"), "lr is set")
    assert changed["changes"] == {"lr": 0.0003}
    assert changed["by"].startswith("figure, pid ")
    page.wait_for_function(f"({MARKS})().length === 1", timeout=20_000)
    (mark,) = page.evaluate(MARKS)
    assert mark.startswith("lr = 0.0003 (figure, pid ")
    head.locator(".answer", has_text=f"from step {changed['step']} on").wait_for()
    assert knob("lr").locator("input").input_value() == "0.0003"

    # the loss is a menu, applied by its button
    knob("loss").locator("select").select_option("jsd")
    knob("loss").locator("button").click()
    wait_until(lambda: len(_events(run, "set")) == 2, "the loss is set")
    assert _events(run, "set")[1]["changes"]["loss"] == "jsd"

    # a value that does not fit is refused in its place, and nothing is asked of the run
    knob("kd_ratio").locator("input").fill("3")
    knob("kd_ratio").locator("input").press("Enter")
    head.locator(".answer[data-kind='error']", has_text="Option 'kd_ratio'").wait_for()
    assert knob("kd_ratio").locator("input[aria-invalid='true']").input_value() == "3"
    assert len(_events(run, "set")) == 2
    page.wait_for_timeout(2500)  # the foot looks at memory every two seconds
    browser_page.screenshot("dashboard_refused")
    knob("kd_ratio").locator("input").press("Escape")
    assert knob("kd_ratio").locator("input").input_value() == "0.5"
    assert head.locator(".answer[data-kind='error']").count() == 0

    head.locator("button.checkpoint").click()
    wait_until(lambda: _events(run, "checkpoint"), "a checkpoint is written")
    step = wait_until(run.checkpoint_steps, "the checkpoint is whole")[-1]

    # a fork that cannot be is refused in the form; one that can has a name and a line of code
    head.locator("button.fork").click()
    form = head.locator(".fork-form")
    form.locator(f".from option[value='{step}']").wait_for(state="attached", timeout=10_000)
    form.locator("[data-field='steps']").fill("1")
    form.locator("button.make-fork").click()
    form.locator(".fork-answer[data-kind='error']", has_text="nothing is left to do").wait_for()
    form.locator("[data-field='steps']").fill("30000")
    form.locator("[data-field='lr']").fill("0.002")
    form.locator("button.make-fork").click()
    form.locator("code", has_text='base-fork1").plot()').wait_for()
    fork = wait_until(lambda: _runs(server).get("base-fork1"), "the fork is there").config()
    assert (fork["parent"]["step"], fork["steps"], fork["lr"]) == (step, 30000, 0.002)
    assert fork["loss"] == "jsd"
    browser_page.screenshot("dashboard_fork")
    form.locator("button.close-fork").click()

    # who waits, in numbers; memory of every process; what happened
    page.wait_for_function(f"({STRIP})().length === 2", timeout=20_000)
    assert head.locator(".idle").inner_text().startswith("Idle, last ")
    assert head.locator(".advice").inner_text() != ""
    foot = page.locator(".kdflow-health").last
    foot.locator(".use", has_text="teacher").wait_for(timeout=10_000)
    roles = [role.strip() for role in foot.locator(".role").all_inner_texts()]
    assert {"supervisor", "controller", "teacher", "student 0"} <= set(roles)
    assert foot.locator(".item").count() == 2

    browser_page.choose_theme("Dark")
    page.wait_for_timeout(800)
    browser_page.screenshot("dashboard_dark")
    browser_page.choose_theme("Light")

    # %kdflow status shows the same; the view that it replaces becomes static
    browser_page.run_cell(STATUS)
    live = "document.querySelectorAll('.kdflow-status').length === 1"
    page.wait_for_function(f"{live} && {PLOTS} === 2 && ({MARKS})().length === 2", timeout=20_000)
    assert page.evaluate(MARKS.replace("at(-1)", "at(0)")) == page.evaluate(
        MARKS
    )  # it has them too
    browser_page.screenshot("dashboard_status")

    # a cell that is cleared gives the memory of its plot back
    page.locator(".kdflow-status button.pause").last.click()
    wait_until(lambda: run.state() == "paused", "the run pauses")
    page.locator(".kdflow-status .state[data-state='paused']").last.wait_for()
    page.wait_for_timeout(1500)  # what was sent to the plot is drawn, and the first view let go
    browser_page.run_cell(COUNT)
    browser_page.wait_for_output(r"^PLOTS 1")
    page.click(".lm-MenuBar-item:has-text('Edit')")
    page.click("[data-command='editmenu:clear-all']")
    page.wait_for_timeout(4000)
    browser_page.run_cell(COUNT)
    browser_page.wait_for_output(r"^PLOTS 0")

    # the fork has the engines now, and the run that was paused is shown as such, with its marks
    browser_page.run_cell(STATUS)
    page.wait_for_function(f"{PLOTS} === 1 && ({MARKS})().length === 2", timeout=20_000)
    page.locator(".kdflow-status .state[data-state='paused']").wait_for()
    browser_page.run_cell(DOWN)
    browser_page.wait_for_output(r"^CLOSED", timeout_s=30)
    assert browser_page.external_requests == []
    assert browser_page.errors == []
