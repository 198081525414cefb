"""What a saved notebook keeps of a run's figure."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
from unit.widgets.conftest import record

from kdflow_lab.widgets import _static
from kdflow_lab.widgets._panels import PANELS
from kdflow_lab.widgets._timeline import PHASES, ROLES
from kdflow_lab.widgets.curves import RunFigure

TRACES = 2 * sum(len(panel.lines) for panel in PANELS) + 1 + len(PHASES) + len(ROLES)


def test_an_ended_run_has_text_svg_and_plotly(make_run):
    bundle = RunFigure(make_run())._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/svg+xml", _static.PLOTLY_MIME}
    assert bundle["text/plain"].startswith("my-run: finished · step 30/100 · loss ")
    assert bundle["text/plain"] in bundle["image/svg+xml"]
    figure = bundle[_static.PLOTLY_MIME]
    json.dumps(figure, allow_nan=False)
    assert len(figure["data"]) == TRACES
    assert figure["layout"]["title"]["text"] == bundle["text/plain"]


def test_the_plotly_form_holds_the_runs_values(make_run):
    figure = _static.bundle(make_run(), interactive=True)[_static.PLOTLY_MIME]
    raw = figure["data"][0]
    assert _values(raw["x"]).tolist() == list(range(1, 31))
    expected = [record(step)["loss"] for step in range(1, 31)]
    np.testing.assert_allclose(_values(raw["y"]), expected, rtol=1e-6)


def _values(array: dict[str, str]) -> np.ndarray:
    """Plotly's form of a numpy array in JSON."""
    return np.frombuffer(base64.b64decode(array["bdata"]), np.dtype(array["dtype"]))


def test_marks_advice_and_idle_shares_survive_in_the_static_forms(make_run):
    run = make_run()
    run.directory.event("set", step=7, changes={"lr": 0.5}, by="figure, pid 7")
    bundle = _static.bundle(run, interactive=True)
    svg = bundle["image/svg+xml"]
    assert "◆ step 7: lr = 0.5 (figure, pid 7, 2" in svg
    assert "Students idle 25 %, teacher idle 25 %: they wait for each other." in svg
    assert svg.count("25 % idle") == 2
    plotly = json.dumps(bundle[_static.PLOTLY_MIME])
    assert "lr = 0.5 (figure, pid 7, 2" in plotly
    assert plotly.count("25 % idle") == 2


def test_beside_a_live_view_there_is_no_second_plotly_figure(make_run):
    assert set(_static.bundle(make_run(), interactive=False)) == {"text/plain", "image/svg+xml"}


def test_a_long_run_is_not_heavier_than_a_notebook_can_carry(make_run):
    run = make_run(steps=20_000)
    bundle = _static.bundle(run, interactive=True)
    assert len(bundle["image/svg+xml"]) < 200_000
    assert len(json.dumps(bundle[_static.PLOTLY_MIME])) < 200_000


def test_a_failed_run_says_why_in_every_form(make_run):
    bundle = _static.bundle(make_run(state="failed"), interactive=True)
    reason = "The teacher <died> & left."
    assert reason in bundle["text/plain"]
    root = ElementTree.fromstring(bundle["image/svg+xml"])
    assert any(
        reason in (text.text or "") for text in root.iter("{http://www.w3.org/2000/svg}text")
    )


def test_plotlys_title_shows_markup_in_a_reason_as_text(make_run):
    """Plotly draws a part of HTML in titles."""
    figure = _static.bundle(make_run(state="failed"), interactive=True)[_static.PLOTLY_MIME]
    assert "The teacher &lt;died&gt; &amp; left." in figure["layout"]["title"]["text"]


def test_a_run_that_never_made_a_step_has_a_figure(make_run):
    bundle = RunFigure(make_run(steps=0, state="stopped"))._repr_mimebundle_()
    assert "nothing measured" in bundle["image/svg+xml"]
    json.dumps(bundle, allow_nan=False)


def test_a_run_without_a_teacher_draws_no_teacher(make_run):
    run = make_run(backend=None)
    figure = _static.bundle(run, interactive=True)[_static.PLOTLY_MIME]
    named = {trace.get("name"): trace for trace in figure["data"] if trace.get("name")}
    lines = {line.label for panel in PANELS for line in panel.lines}
    assert set(named) == lines | {phase.label for phase in PHASES.values()} | set(ROLES)
    assert len(named["teacher"]["customdata"]) == 0
    assert len(named["students"]["customdata"]) > 0
    for name in ("KD", "students wait", "teacher idle"):
        assert np.isnan(_values(named[name]["y"])).all()
    assert np.isfinite(_values(named["CE"]["y"])).all()
