"""A line that is drawn again and again: a tqdm bar in a terminal, one output in a notebook."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab import bars


def test_terminal_line_goes_from_words_to_a_meter(capsys: pytest.CaptureFixture[str]) -> None:
    bar = bars.make_bar()
    bar.text("loading")
    bar.meter("run ", 1, 4, "loss 2")
    bar.meter("run ", 2, 4, "loss 1")
    bar.close()
    drawn = [line.strip() for line in capsys.readouterr().err.split("\r")]
    assert "loading" in drawn
    assert any(line.startswith("run  25%|") and "| 1/4, loss 2" in line for line in drawn)
    assert drawn[-1].startswith("run  50%|") and "| 2/4, loss 1" in drawn[-1]


def test_no_kernel_means_terminal() -> None:
    assert not bars.in_notebook()


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What a notebook's output is told, as (new or updated, text)."""
    from IPython.display import DisplayHandle

    seen: list[tuple[str, str]] = []

    def show(kind: str) -> Any:
        return lambda self, data, raw: seen.append((kind, data["text/plain"]))

    monkeypatch.setattr(DisplayHandle, "display", show("new"))
    monkeypatch.setattr(DisplayHandle, "update", show("update"))
    return seen


def test_notebook_line_is_one_output_updated_in_place(displayed: list[tuple[str, str]]) -> None:
    bar = bars._NotebookBar()
    bar.text("loading")
    bar.text("loading")  # nothing new, nothing sent
    bar.meter("run ", 2, 4, "loss 1")
    bar.close()
    assert displayed[0] == ("new", "loading")
    ((kind, text),) = displayed[1:]
    assert kind == "update"
    assert text.startswith("run  50%|") and text.endswith("| 2/4, loss 1")
    assert len(text) <= bars.COLUMNS
