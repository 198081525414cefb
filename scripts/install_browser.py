"""Find a Chromium for the browser tests, and install one where that can be done.

As a command: say which browser the tests will use; where there is none, install it with apt (as
root), or say in one sentence what to do and exit with code 3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_BROWSER = 3
"""Exit code: there is no browser, and none could be installed."""
HELP = (
    "There is no Chromium for the browser tests. Install one (on Debian or Ubuntu, as root: "
    "apt-get install chromium; or anywhere: playwright install chromium), or name one in the "
    "environment variable CHROMIUM."
)


def find_browser() -> str | None:
    """Return the path of a Chromium: $CHROMIUM, one on the PATH, or playwright's own.

    Raises:
        FileNotFoundError: $CHROMIUM names something that cannot be run.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        found = shutil.which(named)
        if found is None:
            raise FileNotFoundError(
                f"CHROMIUM={named} is not a program that can be run. Unset it to search the PATH."
            )
        return found
    for name in NAMES:
        if found := shutil.which(name):
            return found
    return _playwrights_own()


def _playwrights_own() -> str | None:
    """Return the browser that `playwright install chromium` downloaded, if it did."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _install() -> None:
    """Install Chromium and a font by apt.

    Raises:
        CalledProcessError: apt failed; its output was shown.
    """
    quietly = str(Path(__file__).with_name("quietly"))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ["chromium", "fonts-dejavu-core"]
    for message, command in (
        ("Reading the lists of packages", ["apt-get", "update"]),
        (
            "Installing Chromium for the browser tests (about a minute)",
            ["apt-get", "install", "-y", "--no-install-recommends", *packages],
        ),
    ):
        subprocess.run([quietly, message, *command], check=True, env=environment)


def main() -> int:
    """Find or install a browser; see the module's docstring."""
    try:
        browser = find_browser()
        if browser is None and os.geteuid() == 0 and shutil.which("apt-get"):
            _install()
            browser = find_browser()
    except FileNotFoundError as error:
        print(error)
        return NO_BROWSER
    except subprocess.CalledProcessError:
        browser = None  # apt's own words are above
    print(f"Browser for the tests: {browser}" if browser else HELP)
    return 0 if browser else NO_BROWSER


if __name__ == "__main__":
    sys.exit(main())
