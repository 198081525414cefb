"""The divergence lens as a person meets it: over a run that has ended and over one that trains."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from bare_lens import MEASURE, long_inspection
from bare_lens import page as bare_page
from lab_in_browser import SCREENSHOTS, LabPage
from nbformat import v4

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SETUP = """
import time
import kdflow_lab as kd
from kdflow_lab.widgets import _lens

_lens.GRACE_S = 0.3
lab = kd.Lab("zoo/teacher", "zoo/student", dir="runs").up()
options = dict(data="zoo/tasks", loss="forward_kl", batch_size=16, lr=2e-3, probe_rows=5)
run = lab.distill(**options, steps=40, probe_every=10)
await run
print("READY", run.probes.steps)
"""
SHOW = "run.inspect()"
LIVE = """
live = lab.distill(**options, steps=3000, probe_every=20)
lens = live.inspect()
lens
"""
END = """
live.stop()
await live
lab.close()
time.sleep(1)  # the lens hears of the end
print("ENDED", len(_lens._open), live.probes.newest)
"""
COUNT = 'time.sleep(1); print("OPEN", len(_lens._open))'
NOTEBOOK = "divergence.ipynb"
STEPS = [0, 10, 20, 30, 40]


def _lens(page: Page, number: int) -> Locator:
    found = page.locator(".kdflow-divergence").nth(number)
    found.wait_for(timeout=60_000)
    return found


def _picture(lens: Locator, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    lens.scroll_into_view_if_needed()
    lens.screenshot(path=SCREENSHOTS / f"{name}.png")


def _wait(lens: Locator, expression: str) -> None:
    """Wait until `expression` holds of the element `e`."""
    handle = lens.element_handle()
    lens.page.wait_for_function(f"e => {expression}", arg=handle, timeout=20_000)


def _end_kernel(page: LabPage) -> None:
    for session in page.server.api("/api/sessions"):
        request = urllib.request.Request(
            f"{page.server.url}/api/sessions/{session['id']}",
            headers={"Authorization": f"token {page.server.token}"},
            method="DELETE",
        )
        urllib.request.urlopen(request, timeout=10).close()


def _look_at_the_ended_run(page: Page, lens: Locator) -> None:
    """Hover, keys, histogram, list of the worst, slider."""
    where = lens.locator(".where")
    assert lens.locator(".at").text_content() == "step 40 (5 of 5)"
    _wait(lens, "e.querySelector('.curve').textContent.includes('5 steps')")
    colours = lens.locator(".t").evaluate_all(
        "all => new Set(all.map(one => one.style.backgroundColor)).size"
    )
    assert colours > 3, "tokens have the colours of their values"

    begun = where.text_content()
    lens.locator(".t").nth(2).hover()
    assert where.text_content() == "row 0 · token 3 · prompt or masked, not trained"
    lens.locator(".title").hover()
    assert where.text_content() == begun, "back at the focused token"
    lens.locator(".t").nth(2).click()
    for key, token in [("ArrowRight", "token 4"), ("ArrowLeft", "token 3"), ("Home", "token 1")]:
        page.keyboard.press(key)
        assert f" {token} " in (where.text_content() or ""), key
    page.keyboard.press("ArrowDown")
    assert " token 1 " not in (where.text_content() or "")
    page.keyboard.press("n")
    assert where.text_content() == begun, "n goes to the worst token"
    assert "forward KL" in (lens.locator(".spoken").text_content() or "")

    count = lens.locator(".t").count()
    threshold = lens.locator(".kdflow-histogram input")
    threshold.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    faded = lens.locator(".t.below").count()
    assert 0 < faded < count
    assert f"{count - faded} of {count} tokens ≥" in (lens.locator(".kept").text_content() or "")
    threshold.fill("0")
    assert lens.locator(".t.below").count() == 0

    lens.locator(".worst button").nth(3).click()
    assert where.text_content() == lens.locator(".worst button").nth(3).get_attribute("title")

    before = lens.locator(".t").nth(-3).get_attribute("aria-label")
    slider = lens.locator(".kdflow-travel input[type='range']")
    slider.focus()
    page.keyboard.press("Home")
    _wait(lens, "e.dataset.step === '0'")
    assert lens.locator(".t").nth(-3).get_attribute("aria-label") != before
    page.keyboard.press("End")
    _wait(lens, "e.dataset.step === '40'")
    lens.locator(".unit").click()
    _wait(lens, "e.querySelector('.ticks').textContent.includes('bits')")
    lens.locator(".unit").click()
    lens.locator("select").select_option("entropy_gap")
    _wait(lens, "e.querySelector('.ticks').textContent.includes('+')")
    _picture(lens, "divergence_entropy_gap")
    lens.locator("select").select_option("forward_kl")


@pytest.mark.timeout(400)
def test_divergence_lens_in_jupyterlab(browser_page: LabPage) -> None:
    page, server = browser_page.page, browser_page.server
    cells = [v4.new_code_cell(source) for source in (SETUP, SHOW, LIVE, COUNT, END)]
    path = server.root / NOTEBOOK
    nbformat.write(v4.new_notebook(cells=cells), path)
    browser_page.open(NOTEBOOK)
    browser_page.run_cell(0)
    browser_page.wait_for_output(r"READY \[0, 10, 20, 30, 40\]", timeout_s=120)

    browser_page.run_cell(1)
    lens = _lens(page, 0)
    assert page.locator("[class^='kdflow-twin']").is_hidden()
    _look_at_the_ended_run(page, lens)
    _picture(lens, "divergence_light")
    browser_page.choose_theme("Dark")
    _wait(lens, "e.dataset.theme === 'dark'")
    _picture(lens, "divergence_dark")
    browser_page.choose_theme("Light")

    browser_page.run_cell(1)  # again: the earlier view is closed, not kept
    browser_page.run_cell(3)
    browser_page.wait_for_output(r"^OPEN 1$")
    assert page.locator(".kdflow-divergence").count() == 1

    browser_page.run_cell(2)
    live = _lens(page, 1)
    _wait(live, "Number(e.dataset.step) > 0")
    seen = {live.get_attribute("data-step")}
    deadline = time.monotonic() + 40
    while len(seen) < 4:  # the newest step is drawn as the run goes on
        assert time.monotonic() < deadline, f"only {seen} were shown"
        seen.add(live.get_attribute("data-step"))
        page.wait_for_timeout(100)
    assert "follows the run" in (live.locator(".about").text_content() or "")
    _picture(live, "divergence_live")
    browser_page.run_cell(4)
    newest = browser_page.wait_for_output(r"^ENDED 2 (\d+)", timeout_s=60).group(1)
    _wait(live, "!e.querySelector('.about').textContent.includes('follows')")
    assert browser_page.errors == []
    assert browser_page.external_requests == []

    _saved_notebook(browser_page, path, newest)


def _saved_notebook(browser_page: LabPage, path: Path, newest: str) -> None:
    """What is left without a kernel: in JupyterLab, trusted or not, and exported."""
    page, server = browser_page.page, browser_page.server
    page.keyboard.press("Control+s")
    page.wait_for_function("() => !document.title.startsWith('*')")
    deadline = time.monotonic() + 10
    while "kdflow-twin" not in path.read_text() or "ENDED" not in path.read_text():
        assert time.monotonic() < deadline, "the notebook was not saved"
        page.wait_for_timeout(200)
    assert len(path.read_bytes()) < 1_000_000
    assert f"at step {newest}: forward KL" in path.read_text(), "the twin shows how it ended"
    copy = nbformat.read(path, as_version=4)
    copy.cells[0].source += "\n# not signed by this user"
    nbformat.write(copy, server.root / "untrusted.ipynb")
    _end_kernel(browser_page)
    for name in (NOTEBOOK, "untrusted.ipynb"):
        browser_page.open(name)  # a new kernel, which knows no models
        page.wait_for_timeout(1500)
        twins = page.locator(".jp-OutputArea:has-text('Worst tokens') :text('Worst tokens')")
        assert twins.first.is_visible(), name
        assert not page.get_by_text("Error displaying widget").first.is_visible(), name
        assert not page.get_by_text("Loading widget").first.is_visible(), name
        twins.first.scroll_into_view_if_needed()
        browser_page.screenshot(f"divergence_reopened_{Path(name).stem}")

    command = [sys.executable, "-m", "nbconvert", "--to", "html", path.name]
    subprocess.run(command, cwd=server.root, check=True, capture_output=True, timeout=60)
    page.goto(path.with_suffix(".html").as_uri())
    assert page.get_by_text("Worst tokens").first.is_visible()
    assert page.get_by_text("Error displaying widget").count() == 0
    page.get_by_text("Worst tokens").first.scroll_into_view_if_needed()
    browser_page.screenshot("divergence_nbconvert")


def test_eight_thousand_tokens_stay_smooth(chromium: Browser) -> None:
    """Five times what `benchmarks/lens.py` holds the lens to: 1 s to the first paint, 50 ms."""
    tab = chromium.new_page(viewport={"width": 1400, "height": 900})
    tab.set_content(bare_page([long_inspection(8_000, 20)]))
    tab.wait_for_function("window.paintMs")
    found = tab.evaluate(MEASURE)
    tab.screenshot(path=SCREENSHOTS / "divergence_8000.png")
    tab.close()
    assert found["tokens"] == 8_000
    assert found["first_paint_ms"] < 5_000, found
    assert found["hover_worst_ms"] < 250, found
