"""What every lens shares: two outputs that hide each other, and views that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from kdflow_lab.widgets import _lens
from kdflow_lab.widgets._lens import Lens, LensWidget


class _Widget(LensWidget):
    _esm = "export default { render() {} };"


class _Lens(Lens):
    changing = False
    text = "first"

    def html(self) -> str:
        return f"<p>{self.text}</p>"

    def svg(self) -> str:
        return f"<svg><text>{self.text}\ud800</text></svg>"

    def __repr__(self) -> str:
        return self.text

    @property
    def unsettled(self) -> bool:
        return self.changing

    def _live(self) -> LensWidget:
        return _Widget()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What was displayed or updated, in a notebook whose cell `cell` runs."""
    shell = InteractiveShell.instance()
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        shell.display_pub,
        "publish",
        lambda data, **rest: found.append({**data, "update": rest.get("update", False)}),
    )
    monkeypatch.setattr(_lens, "in_notebook", lambda: True)
    yield found
    for lens in list(_lens._open):
        lens.close()
    InteractiveShell.clear_instance()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Say which cell runs."""

    def now(name: str, run: str) -> None:
        monkeypatch.setattr(_lens, "_running_cell", lambda: (name, run))

    now("", "")
    return now


def test_live_view_and_twin_are_two_outputs(shown: list[dict[str, Any]], cell: object) -> None:
    lens = _Lens()
    lens._ipython_display_()
    live, twin = shown
    assert live["text/html"] == ""  # nothing where no widget can be
    assert lens.widget is not None
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == lens.widget.model_id
    assert lens.widget.twin in twin["text/html"]
    assert "<p>first</p>" in twin["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in twin
    assert twin["image/svg+xml"] == "<svg><text>first\\ud800</text></svg>"
    assert twin["text/plain"] == "first"


def test_a_terminal_gets_the_static_forms(
    shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lens, "in_notebook", lambda: False)
    lens = _Lens()
    lens._ipython_display_()
    assert [one["text/plain"] for one in shown] == ["first"]
    assert lens.widget is None


def test_a_cell_that_runs_again_closes_what_it_showed(
    shown: list[dict[str, Any]], cell: Callable[[str, str], None]
) -> None:
    first, second, other = _Lens(), _Lens(), _Lens()
    cell("a", "1")
    first._ipython_display_()
    cell("b", "2")
    other._ipython_display_()
    cell("a", "3")
    second._ipython_display_()
    assert first.widget is None
    assert _lens._open == [other, second]


def test_the_same_lens_in_a_cell_that_runs_again_stays_open(
    shown: list[dict[str, Any]], cell: Callable[[str, str], None]
) -> None:
    lens = _Lens()
    for run in ("1", "2"):
        cell("a", run)
        lens._ipython_display_()
    assert lens.widget is not None
    assert not lens.widget.closed.is_set()


def test_only_so_many_stay_open(shown: list[dict[str, Any]], cell: object) -> None:
    lenses = [_Lens() for _ in range(_lens.MOST_OPEN + 2)]
    for lens in lenses:
        lens._ipython_display_()
    assert [lens.widget is None for lens in lenses] == [True] * 2 + [False] * _lens.MOST_OPEN


def test_a_view_without_a_place_on_a_page_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lens, "GRACE_S", 0.05)
    widget = _Widget()
    widget._told(widget, {"kind": "views", "count": 1}, [])
    widget._told(widget, {"kind": "views", "count": 0}, [])
    widget._told(widget, {"kind": "views", "count": 1}, [])  # it was moved only
    time.sleep(0.15)
    assert not widget.closed.is_set()
    widget._told(widget, {"kind": "views", "count": 0}, [])
    assert widget.closed.wait(2)
    widget.close()  # a second time does nothing
    assert not any(isinstance(one, threading.Timer) for one in threading.enumerate())


def test_the_twin_is_drawn_anew_when_it_is_settled(
    shown: list[dict[str, Any]], cell: object
) -> None:
    lens = _Lens()
    lens.changing = True
    lens._ipython_display_()
    before = len(shown)
    lens._at_end_of_cell()
    assert len(shown) == before, "it still changes"
    lens.changing, lens.text = False, "last"
    InteractiveShell.instance().events.trigger("post_run_cell", None)
    assert shown[-1]["update"]
    assert "<p>last</p>" in shown[-1]["text/html"]
    count = len(shown)
    InteractiveShell.instance().events.trigger("post_run_cell", None)
    assert len(shown) == count, "once"


def test_it_is_saved_as_a_drawing_or_a_page(tmp_path: Path) -> None:
    assert _Lens().save(tmp_path / "a.svg").read_text().startswith("<svg>")
    assert _Lens().save(tmp_path / "a.html").read_text().endswith("<p>first</p>")
