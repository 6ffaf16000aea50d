"""A browser for the page tests: whichever Chromium the machine has, or none and a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--no-sandbox",  # containers run tests as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def executable() -> str | None:
    """Path of a browser, or None. `VLMFLOW_BROWSER` names one that is not on the path."""
    named = os.environ.get("VLMFLOW_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_browser() -> Iterator[Any]:
    """A headless browser, or the test is skipped with the reason."""
    path = executable()
    if path is None:
        pytest.skip(f"no browser found (looked for {', '.join(NAMES)}): page tests need one")
    playwright = pytest.importorskip("playwright.sync_api", reason="page tests need playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class OpenPage:
    """A page of one file, with everything it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(offline=True, accept_downloads=True, **context)
        # what a payload in a text would set, if a browser ever ran it
        self.context.add_init_script("window.ranPayload = 0; window.alert = () => ranPayload++;")
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready=yes], #trouble:not([hidden])")
        assert self.page.locator("#trouble").all_inner_texts() in ([], [""])

    def shown(self) -> str:
        """Signal, layer and target on screen, once what was asked for has been drawn."""
        self.page.wait_for_selector("body:not([aria-busy=true])")
        return str(self.page.evaluate("document.body.dataset.shown"))

    def outside_requests(self) -> list[str]:
        """Requests for anything but the file itself and data written in it."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        self.context.close()
