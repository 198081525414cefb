"""The static figure: well-formed, escaped, with gaps where nothing was measured."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.widgets.conftest import record

from kdflow_lab.widgets._panels import PANELS, STRIP_TITLE
from kdflow_lab.widgets._series import series
from kdflow_lab.widgets._svg import (
    MOST_MARKS,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    WIDTH,
    draw,
    height,
    ticks,
)
from kdflow_lab.widgets._timeline import PHASES

SVG = "{http://www.w3.org/2000/svg}"
STARTED = {"event": "started", "backend": "transformers"}


def _draw(records: list[dict[str, Any]], *events: dict[str, Any], headline: str = "run"):
    return ElementTree.fromstring(draw(series(records, [STARTED, *events]), headline))


def _texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def _lines(root: ElementTree.Element, colour: str) -> list[str]:
    paths = root.iter(f"{SVG}path")
    return [p.get("d", "") for p in paths if p.get("stroke") == colour and p.get("fill") == "none"]


LOSS = PANELS[0].lines[0].colour


def test_a_drawing_is_an_svg_of_its_size_with_four_panels_and_a_strip():
    records = [record(step) for step in range(1, 20)]
    root = _draw(records)
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox") == f"0 0 {WIDTH} {height(series(records, [STARTED]))}"
    assert len(root.findall(f"{SVG}g")) == 5
    assert {*(panel.title for panel in PANELS), STRIP_TITLE} <= set(_texts(root))


def test_the_strip_says_in_numbers_how_long_each_role_waited():
    """Of 0.2 s the students wait 0.05 s, and the teacher works 0.15 s."""
    texts = _texts(_draw([record(step) for step in range(1, 20)]))
    assert texts.count("25 % idle") == 2
    assert {"teacher", "students", *(phase.label for phase in PHASES.values())} <= set(texts)
    assert "rollout" not in texts
    on_policy = {"rollout_s": 0.1, "rollout_wait_s": 0.1, "sync_s": 0.02}
    texts = _texts(_draw([record(step, **on_policy) for step in range(1, 20)]))
    assert "rollout" in texts
    assert "40 % idle" in texts


def test_advice_and_changes_stand_below_and_make_the_drawing_higher():
    records = [record(step) for step in range(1, 20)]
    sets = [
        {"event": "set", "step": step, "changes": {"lr": step}, "by": "figure, pid 7", "time": 0.0}
        for step in range(1, MOST_MARKS + 3)
    ]
    data = series(records, [STARTED, *sets])
    advice = "Teacher idle 70 %: <student-bound>."
    root = ElementTree.fromstring(draw(data, "run", advice=advice))
    texts = _texts(root)
    assert advice in texts
    assert "◆ 2 earlier changes" in texts
    assert any(text.startswith("◆ step 3: lr = 3 (figure, pid 7, 19") for text in texts)
    assert not any(text.startswith("◆ step 2:") for text in texts)
    lowest = max(float(text.get("y", "0")) for text in root.findall(f"{SVG}text"))
    assert lowest <= height(data, advice)
    assert height(data, advice) > height(data) > height(series(records, [STARTED]))


def test_the_headline_is_text_and_title_and_is_escaped():
    headline = 'a <b>bold</b> & "quoted" run'
    root = _draw([record(1)], headline=headline)
    assert root.findtext(f"{SVG}title") == headline
    assert headline in _texts(root)
    assert root.find(f".//{SVG}b") is None


def test_marks_are_escaped_diamonds_with_a_tooltip():
    changed = {"event": "set", "step": 2, "changes": {"loss": "<x>&"}}
    root = _draw([record(step) for step in (1, 2, 3)], changed)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "step 2: loss = <x>&" in titles
    assert "loss = <x>&" in _texts(root)


def test_a_curve_runs_through_its_values():
    """Two steps, from the top of the axis to its bottom: 0 and 1 are ticks."""
    root = _draw([record(1, loss=1.0), record(2, loss=0.0)])
    raw, mean = _lines(root, LOSS)
    assert raw == f"M{PANEL_WIDTH / 2:.1f} 0.0L{PANEL_WIDTH:.1f} {PANEL_HEIGHT:.1f}"
    assert mean == raw


def test_a_missing_value_is_a_gap():
    losses = [1.0, 2.0, None, None, 3.0, 2.0]
    root = _draw([record(step, loss=loss) for step, loss in enumerate(losses, 1)])
    raw = _lines(root, LOSS)[0]
    assert re.sub(r"[^ML]", "", raw) == "MLML"
    assert "nan" not in raw


def test_what_was_never_measured_is_said():
    root = _draw([record(step, agreement=None) for step in (1, 2)])
    assert _texts(root).count("nothing measured") == 1
    assert _lines(root, PANELS[2].lines[0].colour) == []


def test_an_empty_run_can_be_drawn():
    root = _draw([])
    assert _texts(root).count("nothing measured") == 4


def test_no_number_is_nan_or_outside_of_its_panel():
    records = [record(step, loss=10.0**-step, ce=None if step % 3 else 5e8) for step in range(1, 9)]
    root = _draw(records)
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")
    for group in root.findall(f"{SVG}g"):
        for path in group.iter(f"{SVG}path"):
            if path.get("fill") == "none":
                for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d", "")):
                    assert -0.1 <= float(x) <= PANEL_WIDTH + 0.1
                    assert -0.1 <= float(y) <= PANEL_HEIGHT + 0.1


def test_lines_that_mean_other_things_differ_in_more_than_colour():
    """Colour-blind readers, and prints in grey."""
    for panel in PANELS:
        assert len({line.dash for line in panel.lines}) == len(panel.lines)


@given(
    st.floats(-(2.0**30), 2.0**30, width=32, allow_subnormal=False),
    st.floats(-(2.0**30), 2.0**30, width=32, allow_subnormal=False),
)
def test_ticks_are_few_rising_and_hold_the_values(one, other):
    """Any two float32 values, also losses of 1e-14."""
    low, high = sorted((one, other))
    got = ticks(low, high)
    assert 2 <= len(got) <= 8
    assert got == sorted(set(got))
    slack = 1e-6 * (got[1] - got[0])
    assert got[0] <= low + slack
    assert got[-1] >= high - slack


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 100, [0, 25, 50, 75, 100]),
        (0.3, 2.3, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0, 0, [0, 0.25]),
        (1e-14, 4e-14, [1e-14, 2e-14, 3e-14, 4e-14]),
        (math.nan, 1, [0, 1]),
    ],
)
def test_ticks_by_hand(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected, abs=0)
