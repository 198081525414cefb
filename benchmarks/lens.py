"""How fast the divergence lens is in a browser: 8,000 tokens with the 20 likeliest of both models.

In headless Chromium, in a page of its own; distributions are random, as speed does not depend on
them. In JupyterLab the same JavaScript gets the same bytes.

    first_paint_ms   from the call of `render` to the second frame: everything is drawn
    hover_*_ms       from the event to the panel, style and layout of the page included
    recolour_ms      another quantity: all tokens, histogram and list of the worst
    filter_ms        the threshold of the histogram moves
    payload_mb       bytes that the kernel sends for a step, and for what all steps share
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import install_browser
from _common import machine, print_result
from bare_lens import MEASURE, long_inspection, page
from lab_in_browser import CHROMIUM_ARGS
from playwright.sync_api import sync_playwright

from kdflow_lab.widgets._divergence_data import pack_places, pack_step
from kdflow_lab.widgets.divergence import DivergenceLens

TOKENS, TOP, REPEATS = 8_000, 20, 3


def main() -> None:
    """Measure and print."""
    inspection = long_inspection(TOKENS, TOP)
    path = install_browser.find_browser()
    if path is None:
        raise SystemExit(install_browser.HELP)
    start = time.perf_counter()
    payload = len(pack_step(inspection)[1]) + len(pack_places(inspection)[1])
    pack_ms = 1e3 * (time.perf_counter() - start)
    start = time.perf_counter()
    twin = DivergenceLens(inspection).html()
    twin_ms = 1e3 * (time.perf_counter() - start)
    rounds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        for _ in range(REPEATS):
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.set_content(page([inspection]))
            tab.wait_for_function("window.paintMs")
            rounds.append(tab.evaluate(MEASURE))
            tab.close()
        version = browser.version
        browser.close()
    best = {name: round(min(one[name] for one in rounds), 2) for name in rounds[0]}
    worst = {name: round(max(one[name] for one in rounds), 2) for name in rounds[0]}
    print_result(
        {
            "benchmark": "lens",
            "machine": machine() | {"chromium": version},
            "best": best,
            "worst": worst,
            "payload_mb": round(payload / 1e6, 2),
            "pack_ms": round(pack_ms, 1),
            "twin_ms": round(twin_ms, 1),
            "twin_kb": round(len(twin) / 1e3, 1),
        }
    )


if __name__ == "__main__":
    main()
