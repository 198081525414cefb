"""Fixtures of the browser tests: headless Chromium, a JupyterLab server, a page on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import install_browser
import pytest
from lab_in_browser import CHROMIUM_ARGS, LabPage, LabServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `browser`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Headless Chromium. Where there is none: a failure in CI, a skip elsewhere.

    Not for the session: playwright's event loop runs in this thread as long as it lives, and
    nothing else in it could call asyncio.run().
    """
    from playwright.sync_api import sync_playwright

    path = install_browser.find_browser()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(install_browser.HELP, pytrace=False)
        pytest.skip(install_browser.HELP)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def jupyterlab_server(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabServer]:
    """A JupyterLab server of the module's own; put notebooks into its `root`."""
    # asks for chromium first, so that no server starts where no browser can look at it
    server = LabServer(tmp_path_factory.mktemp("jupyterlab"))
    yield server
    assert server.stop() == [], "processes outlived JupyterLab"


@pytest.fixture
def browser_page(
    chromium: Browser, jupyterlab_server: LabServer, request: pytest.FixtureRequest
) -> Iterator[LabPage]:
    """A fresh page, high enough that JupyterLab renders the cells of a short notebook.

    How it looked at the end, or when the test failed, is in out/screenshots/<test>.png.
    """
    context = chromium.new_context(viewport={"width": 1400, "height": 1800})
    page = LabPage(context.new_page(), jupyterlab_server)
    yield page
    page.screenshot(request.node.name)
    context.close()
