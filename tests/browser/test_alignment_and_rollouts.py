"""The alignment lens and the rollout browser in JupyterLab: real tokenizers, a real run."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from lab_in_browser import LabPage, LabServer, wait_until
from nbformat import v4

from kdflow_lab.rundir import RunDirectory, list_runs

if TYPE_CHECKING:
    from playwright.sync_api import Locator

TEXT = "It is 14 September.\n\n    def naïve(x):  # 東京\n\treturn x            # twelve"
HOSTILE = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 2</script>\u202e\x00"
ALIGNMENT = (
    "import kdflow_lab as kd\n"
    "lab = kd.Lab('zoo/teacher', 'zoo/student-unigram')\n"
    f"TEXT = {TEXT!r}\nlab.align(TEXT)",
    f"lab.align({HOSTILE!r} * 3)",
    "lab.align(TEXT * 60)",
    "print('STATE', lab.status().state)",
)
ROLLOUTS = (
    "%load_ext kdflow_lab\n%kdflow up --teacher zoo/teacher --student zoo/student",
    "run = lab.distill(data='zoo/tasks', rows=64, on_policy=True, steps=12, batch_size=8,\n"
    "    lr=4e-3, max_new_tokens=16, checkpoint_every=6, name='wrote')",
    "%kdflow rollouts wrote",
    "%kdflow down\nprint('DOWN')",
)


@pytest.fixture(scope="module")
def jupyterlab_server(
    chromium: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabServer]:
    """A server with both notebooks, whose runs lie beside them."""
    folder = tmp_path_factory.mktemp("lenses")
    server = LabServer(folder, env={"KDFLOW_RUNS": str(folder / "runs")})
    for name, cells in (("alignment", ALIGNMENT), ("rollouts", ROLLOUTS)):
        notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
        nbformat.write(notebook, server.root / f"{name}.ipynb")
    yield server
    assert server.stop() == [], "processes outlived JupyterLab"


def _saved(page: LabPage) -> Path:
    """Save the notebook; return its file once the outputs are in it."""
    file = page.server.root / page.notebook
    before = file.stat().st_mtime_ns
    page.page.keyboard.press("Control+s")
    wait_until(lambda: file.stat().st_mtime_ns != before, "the notebook is saved")
    return file


def _assert_shown_without_models(page: LabPage, file: Path, *words: str) -> None:
    """A copy that another kernel opens, and an export, show the twins and no error."""
    from nbconvert import HTMLExporter

    exported, _ = HTMLExporter().from_filename(str(file))
    shutil.copy(file, file.with_name(f"copy-{file.name}"))
    page.open(f"copy-{file.name}")
    page.wait_for_output(words[0])
    shown = "\n".join(page.outputs())
    for text in (shown, exported):
        assert "Error displaying widget" not in text
    for word in words:
        assert word in shown, word
        assert word in exported, word
    visible = page.page.locator(f".jp-OutputArea-output:has-text({json.dumps(words[0])})").first
    visible.scroll_into_view_if_needed()
    assert visible.is_visible()


def _height(lens: Locator) -> float:
    box = lens.bounding_box()
    assert box is not None
    return box["height"]


@pytest.mark.timeout(120)
def test_alignment_lens(browser_page: LabPage) -> None:
    page = browser_page.page
    browser_page.open("alignment.ipynb")
    browser_page.choose_theme("Light")
    browser_page.run_cell(0)
    lens = page.locator(".kdflow-alignment").first
    lens.locator(".piece").first.wait_for()
    from transformers import AutoTokenizer

    from kdflow_lab import zoo
    from kdflow_lab.align import align

    theirs, ours = (
        AutoTokenizer.from_pretrained(zoo.path(f"zoo/{name}"))
        for name in ("teacher", "student-unigram")
    )
    expected = align(theirs, ours, TEXT)
    assert lens.locator("div.teacher .token").count() == len(expected.teacher.ids)
    assert lens.locator("div.student .token").count() == len(expected.student.ids)
    assert lens.locator(".piece.one").count() == len(expected.pairs)
    assert f"{expected.coverage:.1%} of {len(expected.data)} bytes" in lens.inner_text()
    twin = page.locator("[class^='kdflow-twin-']").first
    assert not twin.is_visible()  # the live view stands for it

    details = lens.locator(".details")
    assert "one to many (1:3)" in details.inner_text()  # where it begins
    height = _height(lens)
    lens.locator(".piece:has-text('September')").first.hover()
    for shown in ("␣September", "eptember", "bytes 8–17", "GSeptember".replace("G", "Ġ")):
        assert shown in details.inner_text(), shown
    lens.locator(".piece").first.click()
    page.keyboard.press("s")
    assert page.evaluate("document.activeElement.innerText").startswith("␣September")
    page.keyboard.press("s")
    assert "many to many" in details.inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("End")
    assert (lens.locator(".current").get_attribute("aria-label") or "").startswith("one to")
    assert _height(lens) == height  # nothing moves
    browser_page.screenshot("alignment_light")

    browser_page.choose_theme("Dark")
    lens.locator(".tab:has-text('Chat templates')").click()
    lens.locator(".strip >> nth=1 >> .piece.unaligned").first.hover()
    reason = lens.locator(".reason").last.inner_text()
    assert "special token (turn_start) without a counterpart of the student" in reason
    lens.locator(".strip >> nth=1 >> .piece").nth(1).click()
    page.keyboard.press("n")
    assert "assistant" in page.evaluate("document.activeElement.innerText")
    browser_page.screenshot("alignment_dark")
    lens.locator(".tab:has-text('Special tokens')").click()
    assert "turn_end" in lens.locator(".roles").inner_text()
    browser_page.choose_theme("Light")

    browser_page.run_cell(1)  # what is hostile in a text stays text
    hostile = page.locator(".kdflow-alignment").nth(1)
    hostile.locator(".piece").first.wait_for()
    assert "⟨ae⟩" in hostile.inner_text()  # the last byte of the mark of direction
    browser_page.run_cell(2)
    long = page.locator(".kdflow-alignment").nth(2)
    long.locator(".piece").first.wait_for()
    long.scroll_into_view_if_needed()
    hover_ms = long.evaluate(
        """lens => {
            const pieces = [...lens.querySelectorAll('.piece')].slice(0, 1000);
            const start = performance.now();
            for (let at = 0; at < 1000; at += 50) {
                pieces[at].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
                lens.getBoundingClientRect();
            }
            return (performance.now() - start) / 20;
        }"""
    )
    assert long.locator("div.teacher .token").count() > 2000
    print(f"hover: {hover_ms:.1f} ms")  # shown by pytest -rP
    assert hover_ms < 100
    assert page.evaluate("window.hacked") is None
    browser_page.run_cell(3)
    assert browser_page.wait_for_output(r"STATE (\w+)").group(1) == "down"  # two tokenizers suffice

    saved = _saved(browser_page)
    assert saved.stat().st_size < 1_000_000
    words = ("An example conversation through both chat templates", "␣September", "turn_end")
    _assert_shown_without_models(browser_page, saved, *words)
    browser_page.screenshot("alignment_reopened")
    assert page.evaluate("window.hacked") is None
    assert browser_page.external_requests == []
    assert browser_page.errors == []


def _lines(run: RunDirectory) -> list[dict[str, Any]]:
    text = (run.path / "rollouts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.timeout(200)
def test_rollout_browser(browser_page: LabPage) -> None:
    page, server = browser_page.page, browser_page.server
    browser_page.open("rollouts.ipynb")
    browser_page.choose_theme("Light")
    browser_page.run_cell(0)
    browser_page.wait_for_output(r"up \(lab-", timeout_s=60)
    browser_page.run_cell(1)
    run = wait_until(lambda: next(iter(list_runs(server.root.parent / "runs")), None), "the run")
    browser_page.run_cell(2)
    lens = page.locator(".kdflow-rollouts")
    lens.wait_for()
    counts: list[int] = []
    deadline = time.monotonic() + 60
    while len(counts) < 3:  # it grows while the run trains
        assert time.monotonic() < deadline, counts
        found = lens.locator(".where").inner_text().split()[-2].replace(",", "")
        if int(found) > (counts[-1] if counts else 0) and lens.locator("span.live").count():
            counts.append(int(found))
        page.wait_for_timeout(100)
    lens.locator(".token").first.wait_for()
    wait_until(lambda: run.state() == "finished", "the run ends")
    wait_until(lambda: not lens.locator("span.live").count(), "the browser stops following it")

    lines = [line for line in _lines(run) if not line.get("pinned")]
    assert f"{len(lines)} answers of 12 steps" in lens.locator(".headline").inner_text()
    lens.locator("th button:has-text('max KL')").click()
    lens.locator("th button:has-text('max KL ▾')").wait_for()
    worst = max(lines, key=lambda line: line["kl_max"])
    first = lens.locator("tbody tr").first
    numbers = [one.inner_text() for one in first.locator("td").all()]
    assert numbers[:3] == [str(worst[name]) for name in ("step", "row", "length")]
    first.click()
    lens.locator(f".title:has-text('row {worst['row']} ')").wait_for()
    assert lens.locator(".token").count() == worst["length"]
    at = next(n for n, value in enumerate(worst["kl"]) if value >= 0.5)
    correction = lens.locator(".correction").inner_text()
    assert f"Token {at + 1} is the first to reach 0.500 nats" in correction
    assert worst["teacher_tokens"][at].strip() in correction
    chance = math.exp(worst["teacher_top_logprobs"][at])
    assert f"(p {chance:.3f})" in correction
    lens.locator(".correction button").click()
    page.keyboard.press("n")
    following = next(
        n for n in [*range(at + 1, worst["length"]), *range(at + 1)] if worst["kl"][n] >= 0.5
    )
    assert lens.locator(".token.current").get_attribute("data-at") == str(following)
    first.scroll_into_view_if_needed()
    browser_page.screenshot("rollouts_light")

    asked = lens.locator("tbody tr td:nth-child(8)").first.inner_text().split()[0]
    lens.locator("input.search").fill(asked)
    matching = sum(asked.lower() in f"{line['prompt']}{line['text']}".lower() for line in lines)
    page.wait_for_function(
        "count => document.querySelector('.kdflow-rollouts .where').innerText"
        ".endsWith(` ${count} answers`) ",
        arg=matching,
    )
    lens.locator("input.search").fill("")
    lens.locator("input.bits").check()
    assert "bits" in lens.locator(".correction").inner_text()
    lens.locator("input.bits").uncheck()

    browser_page.choose_theme("Dark")
    page.wait_for_timeout(500)
    browser_page.screenshot("rollouts_dark")
    lens.locator(".tab:has-text('Pinned prompts')").click()
    pinned = [line for line in _lines(run) if line.get("pinned")]
    steps = sorted({line["step"] for line in pinned})
    assert len(steps) > 1
    assert lens.locator("select.before").input_value() == str(steps[0])
    assert lens.locator("select.after").input_value() == str(steps[-1])
    shown = lens.locator(".pinned tbody tr")
    assert shown.count() == len({line["row"] for line in pinned}) == 4
    lens.locator("select.before").select_option(str(steps[-1]))
    page.wait_for_function("!document.querySelector('.kdflow-rollouts .changed')")
    lens.locator("select.before").select_option(str(steps[0]))
    lens.locator(".changed").first.wait_for()
    browser_page.screenshot("rollouts_pinned")
    browser_page.choose_theme("Light")

    browser_page.run_cell(3)
    browser_page.wait_for_output("DOWN", timeout_s=30)
    saved = _saved(browser_page)
    words = ("12 steps", "The teacher would have written", "pinned prompt", "The most diverging")
    _assert_shown_without_models(browser_page, saved, *words)
    browser_page.screenshot("rollouts_reopened")
    assert browser_page.external_requests == []
    assert browser_page.errors == []
