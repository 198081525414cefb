"""The comparison of runs: the numbers it draws and lists, forks, and that names stay text."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from unit.widgets.conftest import record

from kdflow_lab.errors import ConfigError
from kdflow_lab.run import Run
from kdflow_lab.widgets._compare_data import LOOKS, MEAN_POINTS, POINTS, compared
from kdflow_lab.widgets._compare_tables import differences, flat, results
from kdflow_lab.widgets._static import PLOTLY_MIME
from kdflow_lab.widgets._svg import PANEL_HEIGHT, PANEL_WIDTH
from kdflow_lab.widgets._table import Cell, Table, elided
from kdflow_lab.widgets.compare import Comparison

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def _run(
    path: Path,
    steps: range | list[dict[str, Any]] = range(1, 101),
    *events: fakes.Event,
    state: str = "finished",
    asked: int = 100,
    backend: str | None = "transformers",
    **config: Any,
) -> Run:
    """A run whose loss at step n is n / 100, in 0.5 s a step at 10 tokens/s."""
    records = [
        step if isinstance(step, dict) else record(step, loss=step / 100, step_s=0.5, lr=1e-3)
        for step in steps
    ]
    started = ("started", {"steps": asked, "backend": backend, "time": 1000.0})
    ended = [(state, {"time": 1075.0})] if state != "starting" else []
    return fakes.write_run(path, [started, *events, *ended], records, config)


def _evaluated(step: int, kl: float | None) -> fakes.Event:
    fields = {"step": step, "kl": kl, "agreement": 0.5, "perplexity": 2.0, "time": 1001.0}
    return "evaluated", fields


def _fork(path: Path, parent: Run, step: int, *events: fakes.Event, **options: Any) -> Run:
    origin = {"run": str(parent.path), "step": step}
    return _run(path, range(step + 1, 101), *events, parent=origin, **options)


def _column(table: Table, row: int) -> list[str]:
    return [cell.text for cell in table.rows[row]]


def _differ(*runs: Run) -> dict[str, list[str]]:
    rows = differences(compared(runs)).rows
    return {row[0].text: [cell.text for cell in row[1:]] for row in rows}


def _result(run: Run) -> dict[str, str]:
    table = results(compared([run]))
    return {
        heading.text: cell.text for heading, cell in zip(table.headings, table.rows[0], strict=True)
    }


def _svg(*runs: Run) -> ElementTree.Element:
    return ElementTree.fromstring(Comparison(runs).svg())


def _texts(root: ElementTree.Element) -> list[str]:
    return [(element.text or "") for element in root.iter(f"{SVG}text")]


def _plotly(*runs: Run) -> dict[str, Any]:
    figure = Comparison(runs)._repr_mimebundle_()[PLOTLY_MIME]
    json.dumps(figure, allow_nan=False)
    return figure


def _values(array: Any) -> np.ndarray:
    """Plotly's form of a numpy array in JSON."""
    if isinstance(array, dict):
        return np.frombuffer(base64.b64decode(array["bdata"]), np.dtype(array["dtype"]))
    return np.array(array, dtype=float)


# -- what is compared -----------------------------------------------------------------------------


def test_a_run_compares_itself_with_others(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    comparison = a.compare(b, a)
    assert isinstance(comparison, Comparison)
    assert comparison.runs == [a, b]  # given twice, it counts once


def test_no_run_and_more_runs_than_colours_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Cannot compare 0 runs: give 1 to 8"):
        Comparison([])
    many = [Run(tmp_path / str(number)) for number in range(9)]
    with pytest.raises(ConfigError, match="Cannot compare 9 runs"):
        Comparison(many)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [_run(tmp_path / folder / "same") for folder in "xy"] + [_run(tmp_path / "other")]
    assert [run.label for run in compared(runs).runs] == ["x/same", "y/same", "other"]


def test_looks_differ_in_colour_and_neighbours_in_their_dashes():
    assert len({look.colour for look in LOOKS}) == 8
    pairs = itertools.pairwise(LOOKS)
    assert all(one.dash != other.dash for one, other in pairs)


def test_the_comparison_shows_what_was_added_meanwhile(tmp_path):
    run = _run(tmp_path / "a", range(1, 11), state="starting")
    comparison = Comparison([run])
    assert "10/100" in repr(comparison)
    run.directory.metrics(record(11))
    assert "11/100" in repr(comparison)


# -- curves ---------------------------------------------------------------------------------------


def test_curves_are_the_runs_values(tmp_path):
    (run,) = compared([_run(tmp_path / "a", range(1, 101))]).runs
    loss = run.curves["loss"]
    assert loss.raw_steps.tolist() == list(range(1, 101))
    np.testing.assert_allclose(loss.raw, np.arange(1, 101) / 100, rtol=1e-6)
    # a window of 2 steps, of 100
    assert loss.mean[0] == pytest.approx(0.01)
    np.testing.assert_allclose(loss.mean[1:], np.arange(1.5, 100) / 100, rtol=1e-5)
    np.testing.assert_allclose(run.curves["agreement"].raw[-1], 100 * (1 - record(100)["loss"] / 3))
    assert np.array_equal(run.curves["lr"].mean, run.curves["lr"].raw)  # not smoothed


def test_noise_of_runs_of_different_length_is_smoothed_alike(tmp_path):
    """2 % of the longest, 1000 steps, but at most a tenth of the short one."""
    long = _run(tmp_path / "long", range(1, 11), asked=1000)
    short = _run(tmp_path / "short", range(1, 101), asked=100)
    mean = compared([long, short]).runs[1].curves["loss"].mean
    assert mean[-1] == pytest.approx(np.mean(np.arange(91, 101)) / 100)


def test_panels_are_those_that_were_measured(tmp_path):
    def shown(*runs: Run) -> list[str]:
        return [axes.quantity for axes in compared(runs).panels]

    distilled = _run(tmp_path / "kd")
    assert shown(distilled) == ["loss", "kd", "agreement", "lr"]
    evaluated = _run(tmp_path / "eval", range(1, 101), _evaluated(50, 0.5))
    assert shown(distilled, evaluated) == ["loss", "kd", "agreement", "held_out"]
    lines = [record(step, kd=None, agreement=None, lr=1e-3) for step in range(1, 11)]
    sft = _run(tmp_path / "sft", lines, backend=None)
    assert shown(sft) == ["loss", "lr", "tokens_per_s"]
    assert shown(distilled, sft) == ["loss", "kd", "agreement", "lr"]


def test_a_run_without_a_teacher_draws_no_kd(tmp_path):
    """Even where zeros were recorded, which would read as a perfect student."""
    sft = _run(tmp_path / "sft", [record(1, kd=0.0)], backend=None)
    assert compared([sft]).runs[0].curves["kd"].empty


def test_axes_are_logarithmic_where_a_decade_is_spanned(tmp_path):
    falling = _run(tmp_path / "a", [record(step, loss=10.0 / step**2) for step in range(1, 101)])
    root = _svg(falling)
    assert _texts(root).count("nats / token, log") == 1  # the KD of `record` spans less
    assert _plotly(falling)["layout"]["yaxis"]["type"] == "log"
    negative = _run(tmp_path / "b", [record(1, loss=-0.01), record(2, loss=5.0)])
    assert _plotly(falling, negative)["layout"]["yaxis"]["type"] == "linear"


def test_a_line_runs_through_its_values_on_a_logarithmic_axis(tmp_path):
    """1 and 0.01 are ticks, at the top and the bottom; 0.1 lies in the middle."""
    lines = [record(step, loss=loss) for step, loss in ((1, 1.0), (2, 0.1), (4, 0.01))]
    root = _svg(_run(tmp_path / "a", lines, asked=4))
    first = next(p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2.2")
    middle = PANEL_HEIGHT / 2
    assert first.get("d") == (
        f"M{PANEL_WIDTH / 4:.1f} 0.0L{PANEL_WIDTH / 2:.1f} {middle:.1f}"
        f"L{PANEL_WIDTH:.1f} {PANEL_HEIGHT:.1f}"
    )


def test_each_run_has_one_colour_in_every_panel_and_a_legend(tmp_path):
    runs = [_run(tmp_path / name, range(1, last)) for name, last in (("a", 101), ("b", 31))]
    figure = _plotly(*runs)
    named = [trace for trace in figure["data"] if trace.get("showlegend")]
    assert [trace["name"] for trace in named] == ["a", "b"]
    for name, look in zip("ab", LOOKS, strict=False):
        traces = [trace for trace in figure["data"] if trace.get("legendgroup") == name]
        assert {trace["line"]["color"] for trace in traces} == {look.colour}
        assert len({trace["yaxis"] for trace in traces}) == 4
    assert _values(named[1]["x"])[-1] == 30


def test_many_steps_are_few_points_and_lose_no_spike(tmp_path):
    lines = [record(step, loss=9.0 if step == 77_777 else 1.0) for step in range(1, 100_001)]
    run = _run(tmp_path / "long", lines, asked=100_000)
    begin = time.process_time()
    comparison = Comparison([run, *(_run(tmp_path / str(k)) for k in range(3))])
    drawn = comparison.svg()
    print(f"{time.process_time() - begin:.2f} s for 100,000 steps")  # shown by pytest -rP
    assert len(drawn) < 200_000
    curve = compared(comparison.runs).runs[0].curves["loss"]
    assert len(curve.raw) <= POINTS / 4 + 2
    assert len(curve.mean) <= MEAN_POINTS
    assert curve.raw.max() == 9.0
    assert curve.mean_steps[[0, -1]].tolist() == [1, 100_000]


# -- forks ----------------------------------------------------------------------------------------


def test_a_forks_line_begins_where_it_left_its_parent(tmp_path):
    parent = _run(tmp_path / "base")
    fork = _fork(tmp_path / "fork", parent, 60)
    base, forked = compared([parent, fork]).runs
    loss, own = base.curves["loss"], forked.curves["loss"]
    at_fork = float(loss.mean[loss.mean_steps == 60][0])
    assert (int(own.mean_steps[0]), float(own.mean[0])) == (60, pytest.approx(at_fork))
    assert own.raw_steps[0] == 61  # what was measured is its own
    assert forked.mark(compared([fork]).panels[0]) == (60, pytest.approx(at_fork))
    assert base.fork is None


def test_the_fork_is_marked_in_the_drawing(tmp_path):
    parent = _run(tmp_path / "base")
    fork = _fork(tmp_path / "fork", parent, 50)
    root = _svg(parent, fork)
    circles = [circle for circle in root.iter(f"{SVG}circle") if circle.get("class") == "fork"]
    assert len(circles) == 4
    assert {circle.get("fill") for circle in circles} == {LOOKS[1].colour}
    assert {circle.get("cx") for circle in circles} == {f"{PANEL_WIDTH / 2:.1f}"}
    # loss is linear from 0 to 1: the mean of steps 49 and 50
    places = [float(circle.get("cy", "")) for circle in circles]
    assert places[0] == pytest.approx(PANEL_HEIGHT * _place(0.495, 0.01, 1), abs=0.1)
    assert "fork  (from base, step 50)" in _texts(root)
    assert any("● fork" in text for text in _texts(root))
    figure = _plotly(parent, fork)
    marks = [trace for trace in figure["data"] if trace.get("mode") == "markers"]
    assert [trace["text"] for trace in marks] == [["forked from base, step 50"]] * 4
    assert (marks[0]["x"], marks[0]["y"]) == ([50], [pytest.approx(0.495)])
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [50] * 4


def _place(value: float, low: float, high: float) -> float:
    """The share from the top of a logarithmic axis."""
    return float(np.log10(high / value) / np.log10(high / low))


def test_a_run_that_is_no_fork_has_no_mark(tmp_path):
    root = _svg(_run(tmp_path / "a"))
    assert not list(root.iter(f"{SVG}circle"))
    assert not any("fork" in text for text in _texts(root))


def test_the_parent_need_not_be_compared(tmp_path):
    parent = _run(tmp_path / "base")
    (fork,) = compared([_fork(tmp_path / "fork", parent, 60)]).runs
    assert fork.curves["loss"].mean_steps[0] == 60
    assert fork.curves["loss"].mean[0] == pytest.approx(0.595)


def test_a_deleted_parent_is_named_and_the_line_begins_at_the_forks_own(tmp_path):
    parent = _run(tmp_path / "base")
    fork = _fork(tmp_path / "fork", parent, 60)
    shutil.rmtree(parent.path)
    data = compared([fork])
    assert data.runs[0].mark(data.panels[0]) == (61, pytest.approx(0.61))
    assert _differ(fork) == {"forked from": ["base, step 60, deleted"]}
    Comparison([fork])._repr_mimebundle_()


def test_lineage_goes_back_to_the_beginning(tmp_path):
    a = _run(tmp_path / "a")
    b = _fork(tmp_path / "b", a, 30)
    c = _fork(tmp_path / "c", b, 31, asked=500)
    assert _differ(a, c)["forked from"] == ["–", "b, step 31 ← a, step 30"]
    # a window of 10 steps: nine of a, one of b
    assert compared([c]).runs[0].curves["loss"].mean[0] == pytest.approx(0.265)


def test_a_circle_of_parents_ends(tmp_path):
    a = _run(tmp_path / "a", parent={"run": str(tmp_path / "b"), "step": 5})
    b = _fork(tmp_path / "b", a, 5)
    assert _differ(a, b)["forked from"] == ["b, step 5", "a, step 5"]


def test_a_fork_that_has_no_step_yet_draws_nothing(tmp_path):
    parent = _run(tmp_path / "base", range(1, 11))
    origin = {"run": str(parent.path), "step": 10}
    fork = _run(tmp_path / "fork", [], state="starting", parent=origin)
    data = compared([parent, fork])
    assert len(data.runs[1].curves["loss"].mean) == 0
    assert [data.runs[1].mark(axes) for axes in data.panels] == [None] * 4
    Comparison([parent, fork])._repr_mimebundle_()


# -- tables ---------------------------------------------------------------------------------------


def test_only_options_that_differ_are_listed(tmp_path):
    same = {"schema": 1, "seed": 42, "betas": [0.9, 0.98]}
    lab = {"teacher": "T", "student": "S"}
    a = _run(tmp_path / "a", lr=1e-3, lab=lab, name="x", versions={"torch": "1"}, **same)
    b = _run(tmp_path / "b", lr=2e-3, lab=lab | {"student": "<S>"}, packing=True, rows=None, **same)
    assert _differ(a, b) == {
        "lr": ["0.001", "0.002"],
        "lab.student": ["S", "<S>"],
        "packing": ["–", "true"],
        "rows": ["–", "none"],
        "forked from": ["–", "–"],
    }


def test_options_are_flattened_one_level():
    config = {"loss_params": {"alpha": 0.1}, "lr": 1, "versions": {"a": 1}, "parent": {"step": 1}}
    assert flat(config) == {"loss_params.alpha": 0.1, "lr": 1}


def test_what_was_set_while_a_run_went_on_is_a_difference(tmp_path):
    changed = ("set", {"step": 7, "changes": {"lr": 0.5, "loss": "reverse_kl"}, "time": 1001.0})
    runs = [_run(tmp_path / "a"), _run(tmp_path / "b", range(1, 11), changed)]
    assert _differ(*runs)["changed"] == ["–", "step 7: lr = 0.5, loss = reverse_kl"]


def test_one_plain_run_has_no_table_of_differences(tmp_path):
    assert _differ(_run(tmp_path / "a")) == {}
    assert "What" not in repr(Comparison([_run(tmp_path / "b")]))


def test_results_by_hand(tmp_path):
    lines = [
        record(s, loss=s / 100, kd=2.0, agreement=0.5, step_s=0.5, tokens_per_s=10.0 * (1 + s % 2))
        for s in range(1, 101)
    ]
    run = _run(tmp_path / "a", lines, _evaluated(40, 0.3), _evaluated(80, 0.2), _evaluated(90, 0.7))
    assert _result(run) == {
        "run": "a",
        "state": "finished",
        "steps": "100/100",
        "loss": "0.98",  # the mean of 0.96 … 1.00
        "KD": "2",
        "agreement": "50.0 %",
        "best held-out KL": "0.2 at 80",
        "tokens/s": "15",
        "time": "1:15",
    }


def test_results_leave_out_what_was_not_measured(tmp_path):
    lines = [record(s, loss=1.0 if s % 2 else None, kd=None, agreement=None) for s in range(1, 101)]
    sft = _run(tmp_path / "sft", lines, _evaluated(40, None), backend=None, state="stopped")
    got = _result(sft)
    assert (got["state"], got["loss"]) == ("stopped", "1")
    assert (got["KD"], got["agreement"], got["best held-out KL"]) == ("–", "–", "–")


def test_runs_without_a_step_have_everything_but_numbers(tmp_path):
    runs = [_run(tmp_path / name, [], state="starting") for name in "ab"]
    assert _result(runs[0])["steps"] == "0/100"
    bundle = Comparison(runs)._repr_mimebundle_()
    assert bundle["image/svg+xml"].count("nothing measured") == 4
    json.dumps(bundle, allow_nan=False)
    legend = [trace for trace in bundle[PLOTLY_MIME]["data"] if trace.get("showlegend")]
    assert [len(_values(trace["x"])) for trace in legend] == [1, 1]  # else plotly omits the names


def test_the_text_is_aligned(tmp_path):
    text = repr(_run(tmp_path / "a", lr=1).compare(_run(tmp_path / "longer", lr=2)))
    _, heading, first, second = text.splitlines()[:4]
    assert heading.index("state") == first.index("finished") == second.index("finished")
    assert heading.index("steps") + len("steps") == first.index("100/100") + len("100/100")
    assert "lr           1  2" in text


def test_what_is_wider_than_the_page_goes_on_below():
    cells = tuple(Cell(f"{letter}" * 40) for letter in "abcd")
    text = Table("T", (Cell("option"), *cells), [(Cell("x"), *cells)]).text()
    assert max(len(line) for line in text.splitlines()) <= 120
    assert [line.split()[0] for line in text.splitlines() if line] == ["T", *["option", "x"] * 2]
    assert all(text.count(cell.text) == 2 for cell in cells)
    _, height = Table("T", (Cell("option"), *cells), []).svg(952)
    assert height > Table("T", (Cell("option"), *cells[:1]), []).svg(952)[1]


def test_long_texts_keep_both_ends():
    assert elided("abcdefghij", 10) == "abcdefghij"
    assert elided("abcdefghijk", 5) == "ab…jk"


# -- forms ----------------------------------------------------------------------------------------


def test_names_and_values_are_text_in_every_form(tmp_path):
    name = "<b>x&"
    run = _run(tmp_path / name, data="<script>alert(1)</script>")
    fork = _fork(tmp_path / "fork <i>", run, 50, data='"&'.ljust(60, ">"))
    comparison = run.compare(fork)
    bundle = comparison._repr_mimebundle_()
    for tag in ("<b>x", "<script", "<i>"):
        assert tag not in bundle["text/html"]
        assert tag not in bundle["image/svg+xml"]
    root = ElementTree.fromstring(bundle["image/svg+xml"])
    assert name in _texts(root)
    assert f"fork <i>  (from {name}, step 50)" in _texts(root)
    ElementTree.fromstring(bundle["text/html"])
    assert name in bundle["text/plain"]
    figure = bundle[PLOTLY_MIME]
    texts = [trace.get("name", "") for trace in figure["data"]]
    texts += [text for trace in figure["data"] for text in trace.get("text", ())]
    assert "&lt;b&gt;x&amp;" in texts
    assert not any("<" in text for text in texts)


def test_a_bundle_has_every_form_and_a_display_both_outputs(tmp_path, monkeypatch):
    comparison = _run(tmp_path / "a").compare(_run(tmp_path / "b"))
    bundle = comparison._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/svg+xml", PLOTLY_MIME}
    assert bundle["text/plain"] == repr(comparison)
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda forms, raw: shown.append(forms))
    comparison._ipython_display_()
    curves, tables = shown
    assert set(curves) == {"text/plain", "image/svg+xml", PLOTLY_MIME}
    assert set(tables) == {"text/plain", "text/html"}
    assert "What differs" not in curves["image/svg+xml"]  # the tables follow
    assert tables["text/html"].count("<table") == 2


def test_it_can_be_saved_with_its_tables(tmp_path):
    path = _run(tmp_path / "a").compare(_run(tmp_path / "b")).save(tmp_path / "figure.svg")
    assert path == tmp_path / "figure.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert {"Comparison of 2 runs", "What differs", "forked from"} <= set(_texts(root))


def test_eight_runs_fit(tmp_path):
    runs = [_run(tmp_path / f"run-{k}", range(1, 10 * k + 2), lr=k) for k in range(8)]
    comparison = Comparison(runs)
    root = ElementTree.fromstring(comparison.svg())
    assert {f"run-{k}" for k in range(8)} <= set(_texts(root))
    assert "nan" not in comparison.svg()
    assert max(len(line) for line in repr(comparison).splitlines()) <= 120
