"""JupyterLab itself works under the fixtures: what every other browser test builds on."""

from __future__ import annotations

import nbformat
from lab_in_browser import LabPage
from nbformat import v4

SOURCE = """
import ipywidgets as widgets
button, said = widgets.Button(description="Press me"), widgets.Label("waiting")
button.on_click(lambda _: setattr(said, "value", "pressed"))
display(button, said)
print("READY", 6 * 7)
"""


def test_cell_runs_and_widget_answers(browser_page: LabPage) -> None:
    notebook = v4.new_notebook(cells=[v4.new_code_cell(SOURCE)])
    nbformat.write(notebook, browser_page.server.root / "widget.ipynb")

    browser_page.open("widget.ipynb")
    browser_page.run_all()

    assert browser_page.wait_for_output(r"^READY (\d+)").group(1) == "42"
    browser_page.page.click("button:has-text('Press me')")
    browser_page.wait_for_output("pressed", timeout_s=10)
    assert browser_page.page.query_selector(".Toastify__toast") is None  # no news, no dialogs
    browser_page.screenshot("lab_page")
    assert browser_page.external_requests == []
    assert browser_page.errors == []
