"""JupyterLab as a person meets it: a server of its own and a page of headless Chromium.

Everything of the server lies in a temporary folder, so that neither a user's settings nor their
registered kernels change what a test sees. The traps answered here were found by repetition: the
kernel's indicator says idle before a kernel is connected, and the kernel dialog comes at random,
so the session is started by REST and asked about there.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import process_watch

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

CHROMIUM_ARGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}
}
SCREENSHOTS = Path(__file__).parent.parent / "out" / "screenshots"


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 30) -> Any:
    """Ask again and again until something is true; return it.

    Raises:
        AssertionError: It was not in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.1)
    return found


class LabServer:
    """A JupyterLab server on loopback whose files are those of `root`."""

    def __init__(self, folder: Path, *, env: dict[str, str] | None = None) -> None:
        """Start the server and wait until it answers.

        Args:
            folder: An empty folder for all that is the server's; notebooks go to `folder/root`.
            env: Added to the environment of the server and so of its kernels.
        """
        self.root = folder / "root"
        self.log = folder / "server.log"
        self.token = uuid.uuid4().hex
        self.mark = uuid.uuid4().hex
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.root.mkdir()
        labconfig = folder / "JUPYTER_CONFIG_DIR" / "labconfig"
        labconfig.mkdir(parents=True)
        (labconfig / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        places = (
            "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR JUPYTERLAB_SETTINGS_DIR "
            "JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR"
        ).split()
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser"),
            *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"),
            *(f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"),
            *("--ServerApp.use_redirect_file=False", "--LabApp.news_url=None"),
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        if os.geteuid() == 0:
            command.append("--allow-root")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    **{name: str(folder / name) for name in places},
                    **(env or {}),
                    process_watch.MARK: self.mark,
                },
            )
        try:
            self._wait_until_up(timeout_s=60)
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.api("/api/status")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def api(self, path: str, data: dict[str, Any] | None = None) -> Any:
        """GET, or POST `data`; return the JSON of the answer."""
        request = urllib.request.Request(
            self.url + path,
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def kernel(self, notebook: str) -> dict[str, Any] | None:
        """Return what the server says of a notebook's kernel; None if it has none."""
        for session in self.api("/api/sessions"):
            if session["path"] == notebook:
                return session["kernel"]
        return None

    def start_kernel(self, notebook: str) -> dict[str, Any]:
        """Start a kernel for `notebook`, a path relative to the root."""
        asked = {"path": notebook, "name": notebook, "type": "notebook"}
        return self.api("/api/sessions", {**asked, "kernel": {"name": "python3"}})["kernel"]

    def stop(self) -> list[str]:
        """End the server with its kernels.

        Returns:
            A description of each process that did not end by itself.
        """
        self._process.terminate()
        left = process_watch.end(self.mark, grace_s=15)
        self._process.wait(5)
        return left


class LabPage:
    """One browser page on a `LabServer`."""

    def __init__(self, page: Page, server: LabServer) -> None:
        """Watch the page's errors and requests; `open` goes there."""
        self.page = page
        self.server = server
        self.notebook = ""
        self.errors: list[str] = []
        """Uncaught exceptions and console errors of the page."""
        self.external_requests: list[str] = []
        """Addresses outside the server that the page asked for."""
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)
        page.on("request", lambda request: self._requested(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _requested(self, url: str) -> None:
        own = (self.server.url, self.server.url.replace("http", "ws", 1), "data:", "blob:")
        if not url.startswith(own):
            self.external_requests.append(url)

    def open(self, notebook: str, *, timeout_s: float = 60) -> None:
        """Open a notebook of the server's root with a kernel that is connected and idle."""
        self.notebook = notebook
        if self.server.kernel(notebook) is None:
            self.server.start_kernel(notebook)
        address = f"{self.server.url}/lab/tree/{notebook}?token={self.server.token}&reset"
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=timeout_s * 1000)
        self._wait_until_idle(timeout_s=timeout_s)

    def _wait_until_idle(self, *, timeout_s: float) -> None:
        """Wait until the notebook has a kernel that is connected and idle."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            dialog = self.dismiss_dialog()
            kernel = self.server.kernel(self.notebook)
            if (
                not dialog
                and kernel is not None
                and kernel["execution_state"] == "idle"
                and kernel["connections"] >= 1
            ):
                return
            self.page.wait_for_timeout(100)
        raise TimeoutError(f"the kernel of {self.notebook} did not become idle in {timeout_s} s")

    def dismiss_dialog(self) -> bool:
        """Accept the dialog that is open; tell whether there was one."""
        if self.page.query_selector(".jp-Dialog .jp-mod-accept") is None:
            return False
        self.page.click(".jp-Dialog .jp-mod-accept")
        return True

    def run_all(self) -> None:
        """Choose Run, Run All Cells in the menu."""
        self.page.click(".lm-MenuBar-item:has-text('Run')")
        self.page.click("[data-command='runmenu:run-all']")

    def run_cell(self, number: int) -> None:
        """Run one code cell, counted from 0, as Shift+Enter does.

        A live figure above may move the page under the mouse, so that a click falls into another
        cell: keys are pressed only where the cell that was meant has the focus.
        """
        editor = self.page.locator(".jp-CodeCell .jp-Editor .cm-content").nth(number)

        def focused() -> bool:
            editor.scroll_into_view_if_needed()
            editor.click()
            return editor.evaluate("node => node.contains(document.activeElement)")

        wait_until(focused, f"cell {number} takes the focus", seconds=10)
        self.page.keyboard.press("Shift+Enter")

    def restart_kernel(self, *, timeout_s: float = 30) -> None:
        """Choose Kernel, Restart Kernel in the menu, say yes, and wait for the new one."""
        self.page.click(".lm-MenuBar-item:has-text('Kernel')")
        self.page.click("[data-command='kernelmenu:restart']")
        self.page.click(".jp-Dialog .jp-mod-accept, .jp-Dialog .jp-mod-warn")
        self.page.wait_for_selector(".jp-Dialog", state="detached", timeout=timeout_s * 1000)
        self._wait_until_idle(timeout_s=timeout_s)

    def choose_theme(self, name: str) -> None:
        """Choose `Light` or `Dark` in the menu, and wait until it holds."""
        self.page.click(".lm-MenuBar-item:has-text('Settings')")
        self.page.hover(".lm-Menu-item[data-type='submenu']:has-text('Theme')")
        entry = f"[data-command='apputils:change-theme']:has-text('JupyterLab {name}')"
        self.page.click(f"{entry} >> nth=0")  # there is one of high contrast, too
        light = str(name == "Light").lower()
        # JupyterLab's body counts as hidden
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")

    def outputs(self) -> list[str]:
        """Return the text of each output on the page."""
        return self.page.eval_on_selector_all(
            ".jp-OutputArea-output", "found => found.map(each => each.textContent)"
        )

    def wait_for_output(self, pattern: str, *, timeout_s: float = 60) -> re.Match[str]:
        """Wait until an output (never a cell's source) matches `pattern`; return the match.

        Raises:
            AssertionError: None did; the message shows the outputs there are.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            outputs = self.outputs()
            for text in outputs:
                if match := re.search(pattern, text, re.MULTILINE):
                    return match
            if time.monotonic() > deadline:
                shown = "\n---\n".join(text[-800:] for text in outputs)
                raise AssertionError(f"no output matches {pattern!r} in {timeout_s} s:\n{shown}")
            self.page.wait_for_timeout(100)

    def screenshot(self, name: str) -> Path:
        """Save what the page shows as out/screenshots/<name>.png, to be looked at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path
