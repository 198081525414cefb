"""A run's figure outside of a page: its static forms, and how plotly gets the data."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from unit.widgets.conftest import record

from kdflow_lab.errors import KDFlowLabError
from kdflow_lab.widgets import ESM_FOLDERS, esm_path
from kdflow_lab.widgets._panels import PANELS
from kdflow_lab.widgets._plotly import empty_figure, fill
from kdflow_lab.widgets._series import series
from kdflow_lab.widgets.curves import RunFigure

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


def test_plotly_gets_every_line_raw_and_mean_where_it_belongs():
    figure: Any = empty_figure()
    lines = [line for panel in PANELS for line in panel.lines]
    fill(figure, series([record(step) for step in range(1, 51)], [STARTED], steps=100))
    *traces, marks = figure.data
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


def test_a_change_is_marked_and_explained():
    figure: Any = empty_figure()
    changed = {"event": "set", "step": 2, "changes": {"lr": 0.5}}
    fill(figure, series([record(1), record(2)], [STARTED, changed], steps=200))
    marks = figure.data[-1]
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
