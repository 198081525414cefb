"""A run's figure outside of a page: its static forms, and how plotly gets the data."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ElementTree
from typing import Any

import ipywidgets
import numpy as np
import pytest
from unit.widgets.conftest import record

from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.widgets import ESM_FOLDERS, curves, esm_path
from kdflow_lab.widgets._live import LivePlot
from kdflow_lab.widgets._panels import PANELS
from kdflow_lab.widgets._plotly import empty_figure, fill, split
from kdflow_lab.widgets._plotly_strip import BAND
from kdflow_lab.widgets._series import series
from kdflow_lab.widgets._timeline import PHASES
from kdflow_lab.widgets.curves import RunFigure
from kdflow_lab.widgets.health import RunHealth
from kdflow_lab.widgets.status import StatusHeader

STARTED = {"event": "started", "backend": "transformers"}


def test_the_runs_plot_is_its_figure(make_run):
    run = make_run()
    figure = run.plot()
    assert isinstance(figure, RunFigure)
    assert repr(figure).startswith("my-run: finished · step 30/100")
    assert figure.widget is None  # nothing of Jupyter for a run that has ended


def test_the_svg_can_be_saved(make_run, tmp_path):
    path = RunFigure(make_run()).save(tmp_path / "figure.svg")
    assert path == tmp_path / "figure.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")


def test_the_figure_follows_its_run(make_run):
    """The same object drawn again shows what was added meanwhile."""
    run = make_run(steps=2, state="running")
    figure = RunFigure(run)
    before = figure.svg()
    assert "my-run: running · step 2/100" in before
    run.directory.metrics(record(3))
    assert "step 3/100" in figure.svg()


def test_a_figure_of_a_living_run_is_static_outside_of_a_notebook(make_run, capsys):
    figure = RunFigure(make_run(state="running"))
    figure._ipython_display_()
    assert figure.widget is None
    assert "my-run: running" in capsys.readouterr().out
    figure.close()  # nothing is open: nothing happens


def test_a_plot_that_no_page_shows_is_freed_and_comes_back(make_run, monkeypatch):
    monkeypatch.setattr(curves, "FREED_AFTER_S", 0.05)
    monkeypatch.setattr(curves, "POLL_S", 0.02)
    run = make_run(state="running")
    figure = RunFigure(run)
    figure._config = run.config
    header, health = StatusHeader(run), RunHealth()
    box = ipywidgets.VBox([header, health])
    thread = threading.Thread(target=figure._follow, args=(box, header, health))
    thread.start()

    def wait_for(parts: int) -> None:
        deadline = time.monotonic() + 30
        while len(box.children) != parts:
            assert time.monotonic() < deadline, header.note
            time.sleep(0.01)

    def say(command: str) -> None:
        header._handle_custom_msg({"command": command}, [])

    try:
        wait_for(3)
        first = box.children[1]
        say("shown")
        say("hidden")
        wait_for(2)
        assert first.comm is None  # closed, here and on the page
        say("shown")
        wait_for(3)
        assert box.children[1] is not first
        assert header.advice.startswith("Students idle 25 %")
    finally:
        figure._leave.set()
        thread.join(10)
    assert not thread.is_alive()


def test_new_data_is_two_messages_to_the_page_and_waits_until_it_has_drawn_them():
    """Each message is one more drawing of the whole figure: five of them left a page behind."""
    plot = LivePlot()
    sent: list[Any] = []
    names = ["_py2js_update", "_py2js_restyle", "_py2js_relayout"]
    plot.figure.observe(lambda change: sent.append(change["new"]), names=names)

    def draw(steps: int) -> int:
        before = len(sent)
        plot.fill(series([record(step) for step in range(1, steps)], [STARTED], steps=99), steps)
        return len([one for one in sent[before:] if one])

    assert not plot.ready  # no page has drawn it yet
    draw(5)
    plot._report(None)  # as a page that draws it
    plot.figure._trace_edit_in_process = False
    assert plot.ready
    assert draw(9) == 2
    assert not plot.ready
    plot.figure._trace_edit_in_process = False
    assert plot.ready


def test_plotly_gets_every_line_raw_and_mean_where_it_belongs():
    figure: Any = empty_figure()
    lines = [line for panel in PANELS for line in panel.lines]
    fill(figure, series([record(step) for step in range(1, 51)], [STARTED], steps=100))
    traces, marks, _ = split(figure)
    assert [trace.name for trace in traces[1::2]] == [line.label for line in lines]
    for raw, mean, line in zip(traces[::2], traces[1::2], lines, strict=True):
        assert raw.line.color == mean.line.color == line.colour
        assert mean.line.dash == line.dash
        assert len(raw.x) == len(raw.y) == 50
    assert len(marks.x) == 0
    shares = [trace for trace, line in zip(traces[1::2], lines, strict=True) if line.second]
    assert len({trace.yaxis for trace in shares}) == 1
    assert figure.layout[shares[0].yaxis.replace("y", "yaxis")].range == (0, 100)


def test_plotly_is_filled_with_arrays_again_and_again():
    figure: Any = empty_figure()
    for steps in (3, 9):
        fill(figure, series([record(step) for step in range(1, steps + 1)], [STARTED], steps=9))
        assert isinstance(figure.data[0].y, np.ndarray)
        assert len(figure.data[0].y) == steps


def test_the_strips_bars_fill_their_bands_and_say_it_in_words():
    figure: Any = empty_figure()
    times = {"rollout_s": 0.1, "rollout_wait_s": 0.04, "sync_s": 0.02}
    fill(figure, series([record(step, **times) for step in range(1, 5)], [STARTED], steps=4))
    _, _, strip = split(figure)
    bars, said = strip[: len(PHASES)], strip[len(PHASES) :]
    total = sum(bar.y.sum() for bar in bars)
    assert total == pytest.approx(BAND * 3 * 4)  # three roles, four steps
    assert {float(width) for bar in bars for width in bar.width} == {1.0}
    for bar in bars:
        assert (bar.base % 1 + bar.y <= BAND + 1e-5).all()
    students = next(trace for trace in said if trace.name == "students")
    assert students.customdata[0] == (
        "students, step 1: works 45 %, hands weights over 10 %, waits for the teacher 25 %, "
        "waits for answers 20 %"
    )
    notes = [note.text for note in figure.layout.annotations if (note.name or "")[:4] == "idle"]
    assert notes == ["45 % idle", "25 % idle", "40 % idle"]  # students, teacher, rollout
    assert list(next(figure.select_yaxes(row=3, col=1)).ticktext) == [
        "students",
        "teacher",
        "rollout",
    ]


def test_zooming_a_panel_zooms_the_strip():
    figure: Any = empty_figure()
    assert next(figure.select_xaxes(row=3, col=1)).matches == "x"


def test_a_change_is_marked_and_explained():
    figure: Any = empty_figure()
    changed = {"event": "set", "step": 2, "changes": {"lr": 0.5}}
    fill(figure, series([record(1), record(2)], [STARTED, changed], steps=200))
    _, marks, _ = split(figure)
    assert list(marks.text) == ["lr = 0.5"]
    assert marks.y[0] == pytest.approx(record(2)["loss"])
    assert "mean of 4" in figure.layout.annotations[0].text
    assert "◆ set" in figure.layout.annotations[0].text


def test_the_figure_has_no_background_of_its_own():
    figure: Any = empty_figure()
    layout = figure.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_the_javascript_is_found_and_a_missing_one_is_named():
    assert esm_path("status").parent in ESM_FOLDERS
    assert "export default" in esm_path("status").read_text(encoding="utf-8")
    with pytest.raises(KDFlowLabError, match=r"no nothing\.js in .* install kdflow-lab again"):
        esm_path("nothing")
